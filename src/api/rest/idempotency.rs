//! `Idempotency-Key`: the client's name for a request, bound to what was asked by a fingerprint.

use super::fence::TENURE_FENCE;
use super::query::Query;
use crate::api::call::{Call, Outcome};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::model::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use crate::model::{Caller, Idempotency};
use crate::service::Header;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use sha2::{Digest, Sha256};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
pub(crate) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

pub(crate) fn mark(headers: &mut HeaderMap, replayed: bool) {
    if replayed {
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
}

/// The JSON answer of a write, with the mark of a replay.
pub(crate) fn written(call: &mut Call, status: StatusCode, header: Header, replayed: bool, json: Writer) -> Outcome {
    let mut answered = call.json(status, Some(header), json)?;
    mark(answered.response.headers_mut(), replayed);
    Ok(answered)
}

/// The request's key and fingerprint, if it has a key.
pub(crate) fn of(call: &Call, query: &Query, body: &[u8], caller: &Caller) -> Result<Option<Idempotency>, Problem> {
    let Some(key) = call.header_text(IDEMPOTENCY_KEY)? else { return Ok(None) };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let limit = format!("`Idempotency-Key` has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} characters");
        return Err(Problem::parameter(IDEMPOTENCY_KEY, limit));
    }
    let header = |name: HeaderName| call.parts.headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let mut parts: Vec<&[u8]> = vec![
        call.parts.method.as_str().as_bytes(),
        call.parts.uri.path().as_bytes(),
        // Conditions and the declared type are part of what is asked, though not of the body.
        header(IF_MATCH),
        header(IF_NONE_MATCH),
        header(CONTENT_TYPE),
    ];
    // Only if there are any: requests without them keep the fingerprint that earlier releases gave them.
    let fences: Vec<&[u8]> = call.parts.headers.get_all(TENURE_FENCE).iter().map(HeaderValue::as_bytes).collect();
    if !fences.is_empty() {
        parts.push(b"fences");
        parts.extend(fences);
    }
    match caller {
        Caller::Anonymous => parts.push(b"anonymous"),
        Caller::System => parts.push(b"system"),
        Caller::User { name, auth_revision: _ } => parts.extend([&b"user"[..], name.as_bytes()]),
    }
    parts.extend(query.canonical().into_iter().flat_map(|(name, value)| [name.as_bytes(), value]));
    parts.push(body);
    Ok(Some(Idempotency { key: key.to_owned(), fingerprint: fingerprint(&parts) }))
}

/// For operations that cannot promise it: better refused than ignored.
pub(crate) fn refuse(call: &Call) -> Result<(), Problem> {
    match call.header_text(IDEMPOTENCY_KEY)? {
        None => Ok(()),
        Some(_) => Err(Problem::parameter(
            IDEMPOTENCY_KEY,
            "this operation is many transactions and takes no `Idempotency-Key`",
        )),
    }
}

/// The first 16 bytes of SHA-256 over the parts, each with its length in front.
fn fingerprint(parts: &[&[u8]]) -> [u8; 16] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&digest.finalize()[..16]);
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_requests_apart_and_stay_the_same_over_releases() {
        let parts: [&[u8]; 3] = [b"PUT", b"/v1/kv/a", b"1"];
        assert_eq!(fingerprint(&parts), fingerprint(&parts));
        assert_ne!(fingerprint(&parts), fingerprint(&[b"PUT", b"/v1/kv/a1", b""]));
        // A record outlives an upgrade of its member: the digest is part of the stored format.
        let hex: String = fingerprint(&[b"a"]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3b196fd4907bedf51c3090e9835f2f7c");
    }
}
