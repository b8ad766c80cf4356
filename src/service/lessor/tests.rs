//! The lessor's core against a naive oracle.
