//! What `#[lopt::network]` rejects, word for word. What it accepts is in
//! `accepted`: trybuild would build, not only check, every dependency again.
//!
//! The messages of the compiler itself change between versions: the expected
//! output is that of the toolchain that CI pins. `TRYBUILD=overwrite` renews it.

#[test]
fn rejected() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
