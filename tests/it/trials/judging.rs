//! One gate between an endpoint's reply and a verdict.
