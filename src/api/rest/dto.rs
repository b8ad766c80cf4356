//! Answers as JSON, in the field order of the contract.

use crate::api::json::Writer;
use crate::model::{DeleteReason, KeyValue, LeaseId, Revision};

/// Whether an entry is written with its value or only with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    Shown,
    Omitted,
}

impl Values {
    pub(crate) fn unless(keys_only: bool) -> Self {
        if keys_only { Self::Omitted } else { Self::Shown }
    }
}

pub(crate) fn entry(json: &mut Writer, kv: &KeyValue, values: Values) {
    entry_with_ttl(json, kv, values, None);
}

/// An entry with the TTL of its lease, where that is at hand.
pub(crate) fn entry_with_ttl(json: &mut Writer, kv: &KeyValue, values: Values, ttl_ms: Option<u64>) {
    json.open();
    json.key(&kv.key);
    match values {
        Values::Shown => json.bytes("value", "value_base64", &kv.value),
        Values::Omitted => json.count("size", kv.value_size),
    }
    if let Some(content_type) = &kv.content_type {
        json.text("content_type", content_type);
    }
    json.int("create_revision", kv.create_revision);
    json.int("mod_revision", kv.mod_revision);
    json.int("version", kv.version);
    lease(json, kv.lease);
    if let Some(ttl_ms) = ttl_ms {
        json.count("ttl_ms", ttl_ms);
    }
    json.close();
}

pub(crate) fn entry_bytes(kv: &KeyValue) -> Vec<u8> {
    let mut json = Writer::with_capacity(kv.key.len() + kv.value.len() + 128);
    entry(&mut json, kv, Values::Shown);
    json.into_bytes()
}

/// Lease ids are random 63-bit numbers, which JavaScript would round: hexadecimal text.
pub(crate) fn lease(json: &mut Writer, lease: LeaseId) {
    if lease != 0 {
        json.text("lease", &format!("{lease:016x}"));
    }
}

/// Why a key is gone.
pub(crate) fn reason(reason: DeleteReason) -> &'static str {
    match reason {
        DeleteReason::Deleted => "deleted",
        DeleteReason::Expired => "expired",
        DeleteReason::LeaseRevoked => "lease_revoked",
    }
}

#[derive(Debug)]
pub(crate) struct Put<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) revision: Revision,
    pub(crate) version: i64,
    pub(crate) created: bool,
    pub(crate) lease: LeaseId,
    pub(crate) expires_at: Option<&'a str>,
    pub(crate) previous: Option<&'a KeyValue>,
}

pub(crate) fn put(json: &mut Writer, put: &Put<'_>) {
    json.open();
    json.key(put.key);
    json.int("revision", put.revision);
    json.int("version", put.version);
    json.bool("created", put.created);
    lease(json, put.lease);
    if let Some(expires_at) = put.expires_at {
        json.text("expires_at", expires_at);
    }
    if let Some(previous) = put.previous {
        json.name("previous");
        entry(json, previous, Values::Shown);
    }
    json.close();
}

pub(crate) fn deleted(json: &mut Writer, deleted: u64, revision: Revision, previous: Option<&[KeyValue]>) {
    json.open();
    json.count("deleted", deleted);
    json.int("revision", revision);
    if let Some(previous) = previous {
        json.name("previous");
        json.open_list();
        previous.iter().for_each(|kv| entry(json, kv, Values::Shown));
        json.close_list();
    }
    json.close();
}

#[derive(Debug)]
pub(crate) struct Counter<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: i64,
    pub(crate) previous: i64,
    pub(crate) revision: Revision,
    pub(crate) clamped: bool,
}

pub(crate) fn counter(json: &mut Writer, counter: &Counter<'_>) {
    json.open();
    json.key(counter.key);
    json.int("value", counter.value);
    json.int("previous", counter.previous);
    json.int("revision", counter.revision);
    json.bool("clamped", counter.clamped);
    json.close();
}

/// What is left of an answer that was too large to be kept for replays.
pub(crate) fn outcome_only(json: &mut Writer, key: Option<&[u8]>, revision: Revision) {
    json.open();
    if let Some(key) = key {
        json.key(key);
    }
    json.int("revision", revision);
    json.bool("outcome_only", true);
    json.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_as_documented() {
        let mut kv = KeyValue {
            key: "a".into(),
            value: "1".into(),
            value_size: 1,
            content_type: Some("application/json".into()),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 0,
        };
        let expected = r#"{"key":"a","value":"1","content_type":"application/json","create_revision":2,"mod_revision":3,"version":2}"#;
        assert_eq!(String::from_utf8(entry_bytes(&kv)).unwrap(), expected);
        kv.lease = 0x3f9a;
        kv.content_type = None;
        let mut json = Writer::default();
        entry(&mut json, &kv, Values::Omitted);
        let expected =
            r#"{"key":"a","size":1,"create_revision":2,"mod_revision":3,"version":2,"lease":"0000000000003f9a"}"#;
        assert_eq!(String::from_utf8(json.into_bytes()).unwrap(), expected);
    }
}
