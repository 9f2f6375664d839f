//! The `#[lopt::network]` attribute.
