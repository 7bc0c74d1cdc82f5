//! Keys, prompts and tokens reach the host that they are meant for, and no other.
