//! The lessor: its core against a naive oracle, its memory, storms, and whole members.

mod core;
