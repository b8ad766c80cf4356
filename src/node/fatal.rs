//! The end of the process on a storage fault: said once, loudly, and never retried. What was
//! acknowledged is in the log, and the next start builds the rest anew.

use crate::model::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// BSD's EX_IOERR: tells a supervisor's log what kind of end this was.
const EXIT_CODE: i32 = 74;

pub(super) type Fatal = Arc<dyn Fn(&Fault) + Send + Sync>;

/// The handler given to everything that stores: the first call ends the process.
#[must_use]
pub(super) fn handler() -> Fatal {
    let called = Arc::new(AtomicBool::new(false));
    Arc::new(move |fault| {
        // A second fault while the first one ends the process has nothing to add.
        if !called.swap(true, Ordering::SeqCst) {
            tracing::error!(%fault, "storage fault: this process ends now, nothing acknowledged is lost");
        }
        end();
    })
}

#[expect(clippy::disallowed_methods, reason = "fail-stop: the one place that ends the process on a fault")]
fn end() -> ! {
    std::process::exit(EXIT_CODE)
}
