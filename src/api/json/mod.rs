//! JSON without surprises: `read` parses strictly (no duplicate members, bounded depth, no trailing
//! bytes) and keeps each value's own bytes, so that an embedded value is stored exactly as it was
//! sent; `write` builds answers by pushing members in their documented order.

pub(crate) mod read;
pub(crate) mod write;

pub(crate) use read::{Node, Value, parse};
pub(crate) use write::{Writer, pretty};
