//! Who asks. Travels inside every proposal, because rights are decided in apply.

use serde::{Deserialize, Serialize};

/// The identity behind a request. With authorisation off everybody is `Anonymous`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Caller {
    #[default]
    Anonymous,
    /// The cluster itself: lease expiry, automatic compaction.
    System,
    /// A named user, authenticated at this revision of the auth tables: a later change of the user's
    /// password, or another user of that name, makes it void.
    User { name: String, auth_revision: i64 },
}
