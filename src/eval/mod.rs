//! How well a learned optimizer does what it is asked.

pub mod alignment;
