//! How openraft answers a write: by calling one closure, wherever it finishes the write. So a batch
//! costs one allocation, and no task or channel stands between apply and the waiters.

use super::types::Types;
use openraft::raft::responder::Responder;
use std::fmt;

/// Called with the result, or dropped uncalled if Raft ends first.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(call))
    }
}

impl<T> fmt::Debug for Callback<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

impl<T: Send + 'static> Responder<Types, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
