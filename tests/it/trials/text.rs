//! Text is made comparable before it is compared.
