//! The `intseg` command.
fn main() {}
