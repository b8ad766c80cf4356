//! The `tenure` binary: parses arguments, runs the command, maps its outcome to an exit code.

fn main() {}
