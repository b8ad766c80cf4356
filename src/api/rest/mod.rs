//! `/v1`: the REST API. One file per group of operations, over the decoders and encoders they share:
//! `query`, `keys`, `fields` and `conditions` read requests; `dto` writes answers.

pub(crate) mod claims;
pub(crate) mod cluster;
pub(crate) mod conditions;
pub(crate) mod counters;
pub(crate) mod cursor;
pub(crate) mod dto;
pub(crate) mod fence;
pub(crate) mod fields;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod idempotency;
pub(crate) mod import;
pub(crate) mod keys;
pub(crate) mod kv;
pub(crate) mod leases;
pub(crate) mod list;
pub(crate) mod maintenance;
mod media;
pub(crate) mod query;
pub(crate) mod ratelimits;
pub(crate) mod ttl;
pub(crate) mod txn;
pub(crate) mod watch;
