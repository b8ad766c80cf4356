//! The Rust client of the REST API (rank 5): what the CLI and the tests speak to a member with; and one of
//! etcd's API, to copy an etcd.
//!
//! Invariants: a request is built once, as data, and is then either sent or printed as a `curl` line.
//! A request goes to another endpoint only when the first certainly did nothing with it: no byte was
//! sent, or it was a read, or the answer said `applied: no` and that a retry may help. Every failure
//! says whether a write may have happened. The only home of reqwest. It must not know the service, the
//! machine, terminals or exit codes.

mod credentials;
mod curl;
mod endpoint;
mod entry;
mod error;
pub mod etcd;
mod key;
mod lines;
mod request;
mod transport;
mod watch;

pub use credentials::Credentials;
pub use curl::{curl_line, quote};
pub use endpoint::Endpoint;
pub use entry::{BytesForm, Entry, form_of};
pub use error::{Applied, Error, Kind, Problem};
pub use key::{encode_component, encode_key_path};
pub use lines::Lines;
pub use request::{Body, Method, Request};
pub use transport::{Answer, Attempt, Client, Options, Stream, Upload};
pub use watch::{Follow, Followed, WatchEvent};
