//! `POST /v1/import`: NDJSON entries, read line by line and written in transactions of many.

use super::fields::{Fields, parse_body};
use super::idempotency;
use super::keys::checked;
use super::kv::foreign;
use super::query::Names;
use super::ttl::{lease_id, ttl_ms};
use super::txn::stored_type;
use crate::api::call::{ALWAYS, Call, Outcome};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive::{Reader, too_large};
use crate::api::status::{Applied, Code};
use crate::model::limits::TXN_OPS_MAX;
use crate::model::{
    Compare, CompareOp, CompareTarget, Failure, KeyRange, LeaseChoice, LeaseId, Op, OpReply, PutOp, Rejection, Reply,
    Revision, Txn, TxnReply,
};
use crate::service::{Context, Header};
use bytes::{Buf, Bytes, BytesMut};
use hyper::StatusCode;
use std::collections::BTreeSet;
use std::time::Duration;

const NAMES: Names = Names { allowed: &[&["on_conflict", "prefix"], ALWAYS], later: &["ns"] };
/// Entries of one transaction. One less than the limit of operations: what is nested in a transaction may
/// use what it leaves of the limit, and skipping nests.
const BATCH_ENTRIES: usize = TXN_OPS_MAX - 1;
/// A transaction is sent off when its keys and values pass this many bytes.
const BATCH_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnConflict {
    Overwrite,
    Skip,
    Fail,
}

pub(crate) async fn post(call: &mut Call) -> Outcome {
    let query = call.query(&NAMES)?;
    call.body_is(&["application/x-ndjson", "application/ndjson", "application/jsonl", "application/json"])?;
    idempotency::refuse(call)?;
    let choices = [("overwrite", OnConflict::Overwrite), ("skip", OnConflict::Skip), ("fail", OnConflict::Fail)];
    let on_conflict = query.choice("on_conflict", &choices)?.unwrap_or(OnConflict::Overwrite);
    let prefix = Bytes::copy_from_slice(query.bytes("prefix").unwrap_or_default());
    let context = call.context(&query)?;
    let mut reader = Reader::new(call)?;
    reader.admit(call)?;
    let mut import = Import { on_conflict, prefix, context, done: Done::default(), batch: Batch::default() };
    let outcome = import.run(call, &mut reader).await;
    let done = import.done;
    let mut json = Writer::with_capacity(96);
    match outcome {
        Ok(()) => {
            json.open();
            done.write(&mut json, call.state.service.header().revision);
            json.close();
            call.json(StatusCode::OK, done.header, json)
        }
        // Earlier batches stand: the problem says how far it came.
        Err(problem) => {
            reader.discard(call).await;
            let problem = problem.count("imported", done.imported).count("skipped", done.skipped);
            Err(if done.imported > 0 { problem.applied(Applied::Unknown) } else { problem })
        }
    }
}

#[derive(Default)]
struct Done {
    imported: u64,
    skipped: u64,
    revision: Option<Revision>,
    header: Option<Header>,
}

impl Done {
    fn write(&self, json: &mut Writer, current: Revision) {
        json.count("imported", self.imported);
        json.count("skipped", self.skipped);
        json.int("revision", self.revision.unwrap_or(current));
    }
}

/// Puts that go into one transaction, each with its line.
#[derive(Default)]
struct Batch {
    puts: Vec<(u64, PutOp)>,
    keys: BTreeSet<Bytes>,
    bytes: usize,
}

struct Import {
    on_conflict: OnConflict,
    prefix: Bytes,
    context: Context,
    done: Done,
    batch: Batch,
}

impl Import {
    async fn run(&mut self, call: &mut Call, reader: &mut Reader) -> Result<(), Problem> {
        // An entry's bytes may all be escaped, but then the value is small enough for the machine or
        // refused by it; this only bounds what is held.
        let line_max = call.state.options.request_bytes_max.saturating_mul(2);
        let mut lines = Lines::default();
        let mut number = 0;
        loop {
            while let Some(line) = lines.next() {
                number += 1;
                self.line(call, reader, number, &line).await?;
            }
            if lines.pending() > line_max {
                return Err(too_large(line_max).count("line", number + 1));
            }
            match reader.next(call).await? {
                Some(chunk) => lines.push(&chunk),
                None => break,
            }
        }
        let last = lines.rest();
        self.line(call, reader, number + 1, &last).await?;
        self.flush(call, reader).await
    }

    async fn line(&mut self, call: &Call, reader: &mut Reader, number: u64, line: &[u8]) -> Result<(), Problem> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let Entry { mut put, lease, ttl_ms } =
            entry(line, &self.prefix).map_err(|problem| problem.count("line", number))?;
        let service = &call.state.service;
        put.lease = match (lease, ttl_ms) {
            (Some(lease), _) if service.lease_is_shared(lease) => LeaseChoice::Attach(lease),
            (_, Some(ttl_ms)) => LeaseChoice::Implicit { id: service.new_lease_id(), ttl_ms },
            // Without its lease an entry that was to vanish would stay for ever.
            (Some(lease), None) => {
                return Err(Problem::from(Failure::from(Rejection::LeaseNotFound(lease))).count("line", number));
            }
            (None, None) => LeaseChoice::Detach,
        };
        let max = call.state.options.request_bytes_max;
        if put.key.len() + put.value.len() > max {
            return Err(too_large(max).count("line", number));
        }
        let full = self.batch.puts.len() == BATCH_ENTRIES || self.batch.bytes > BATCH_BYTES;
        // A transaction writes a key once; a later line for it goes into the next one.
        if full || self.batch.keys.contains(&put.key) {
            self.flush(call, reader).await?;
        }
        self.batch.bytes += put.key.len() + put.value.len();
        self.batch.keys.insert(put.key.clone());
        self.batch.puts.push((number, put));
        Ok(())
    }

    async fn flush(&mut self, call: &Call, reader: &mut Reader) -> Result<(), Problem> {
        let batch = std::mem::take(&mut self.batch);
        if batch.puts.is_empty() {
            return Ok(());
        }
        let (lines, puts): (Vec<u64>, Vec<PutOp>) = batch.puts.into_iter().unzip();
        let keys: Vec<Bytes> = puts.iter().map(|put| put.key.clone()).collect();
        let began = call.state.clock.monotonic();
        let answer = call.state.service.txn(&self.context, transaction(self.on_conflict, puts), None).await?;
        reader.excuse(call.state.clock.monotonic().saturating_sub(began));
        let Reply::Txn(reply) = answer.body else { return Err(foreign("another command's reply")) };
        self.done.header = Some(answer.header);
        if !reply.succeeded {
            let at = reply.failed_if.first().and_then(|at| usize::try_from(*at).ok()).unwrap_or(0);
            let (line, key) = (lines.get(at).copied().unwrap_or(0), keys.get(at).cloned().unwrap_or_default());
            let detail = format!("{} of line {line} exists", String::from_utf8_lossy(&key));
            return Err(Problem::new(Code::KeyExists, detail).count("line", line).key(&key));
        }
        let skipped = reply.results.iter().filter(|result| is_skip(result)).count() as u64;
        self.done.skipped += skipped;
        self.done.imported += lines.len() as u64 - skipped;
        self.done.revision = Some(reply.revision);
        Ok(())
    }
}

fn is_skip(result: &OpReply) -> bool {
    matches!(result, OpReply::Txn(TxnReply { succeeded: false, .. }))
}

fn transaction(on_conflict: OnConflict, puts: Vec<PutOp>) -> Txn {
    match on_conflict {
        OnConflict::Overwrite => Txn { success: puts.into_iter().map(Op::Put).collect(), ..Txn::default() },
        OnConflict::Fail => Txn {
            compares: puts.iter().map(|put| missing(&put.key)).collect(),
            success: puts.into_iter().map(Op::Put).collect(),
            failure: Vec::new(),
        },
        OnConflict::Skip => {
            let one = |put: PutOp| {
                let compares = vec![missing(&put.key)];
                Op::Txn(Box::new(Txn { compares, success: vec![Op::Put(put)], failure: Vec::new() }))
            };
            Txn { success: puts.into_iter().map(one).collect(), ..Txn::default() }
        }
    }
}

fn missing(key: &Bytes) -> Compare {
    Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target: CompareTarget::Version(0) }
}

/// A line: what to put, and which lease the entry had.
#[derive(Debug)]
struct Entry {
    put: PutOp,
    lease: Option<LeaseId>,
    ttl_ms: Option<u64>,
}

/// An `Entry` as a listing writes it. What the store assigns anew is read over.
fn entry(line: &[u8], prefix: &Bytes) -> Result<Entry, Problem> {
    let mut fields = Fields::of(parse_body(line)?, "")?;
    let lease = fields.text("lease")?.map(|text| lease_id("lease", &text)).transpose()?;
    let ttl_ms = match fields.int("ttl_ms")? {
        None => None,
        Some(ms) => Some(ttl_ms("ttl_ms", Duration::from_millis(u64::try_from(ms).unwrap_or(0)))?),
    };
    let key = fields.require_key()?;
    let key = if prefix.is_empty() { key } else { checked([&prefix[..], &key[..]].concat().into())? };
    let (value, is_json) = fields.value()?.ok_or_else(|| Problem::body("the entry has no value"))?;
    let content_type = stored_type(&mut fields, is_json)?;
    for assigned in ["create_revision", "mod_revision", "version"] {
        fields.int(assigned)?;
    }
    fields.finish()?;
    let put = PutOp { key, value, content_type, lease: LeaseChoice::Detach, prev_kv: false, ignore_value: false };
    Ok(Entry { put, lease, ttl_ms })
}

/// Cuts chunks into lines.
#[derive(Default)]
struct Lines {
    buffer: BytesMut,
    /// How far there is no newline.
    searched: usize,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    fn next(&mut self) -> Option<Bytes> {
        match self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            None => {
                self.searched = self.buffer.len();
                None
            }
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                Some(line)
            }
        }
    }

    fn pending(&self) -> usize {
        self.buffer.len()
    }

    fn rest(&mut self) -> Bytes {
        self.searched = 0;
        std::mem::take(&mut self.buffer).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rest::dto::entry_bytes;
    use crate::model::KeyValue;

    #[test]
    fn what_a_listing_writes_can_be_imported() {
        let kv = KeyValue {
            key: Bytes::from_static(b"\xffa"),
            value: Bytes::from_static(b"\0\xff"),
            value_size: 2,
            content_type: Some("image/png".into()),
            create_revision: 3,
            mod_revision: 4,
            version: 2,
            lease: 0,
        };
        let put = entry(&entry_bytes(&kv), &"p/".into()).unwrap().put;
        assert_eq!((&put.key[..], &put.value, put.content_type), (&b"p/\xffa"[..], &kv.value, kv.content_type.clone()));
        let leased = entry_bytes(&KeyValue { lease: 7, ..kv });
        assert_eq!(entry(&leased, &Bytes::new()).unwrap().lease, Some(7));
    }

    #[test]
    fn an_entry_without_value_or_with_a_typo_is_refused() {
        for line in [
            r#"{"key":"a"}"#,
            r#"{"value":"a"}"#,
            r#"{"key":"a","valu":"1"}"#,
            r#"{"key":"a","value":"1","ttl_ms":0}"#,
            r#"{"key":"a","value":"1","ttl_ms":-5}"#,
            r#"{"key":"a","value":"1","lease":"x"}"#,
            "[]",
            "{",
            r#"{"key":"a","value":"1"} x"#,
        ] {
            assert!(entry(line.as_bytes(), &Bytes::new()).is_err(), "{line}");
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_are() {
        let text = b"a\n\nbb\r\nlast";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for chunk in [&text[..cut], &text[cut..]] {
                lines.push(chunk);
                seen.extend(std::iter::from_fn(|| lines.next()));
            }
            seen.push(lines.rest());
            assert_eq!(seen, [&b"a"[..], b"", b"bb\r", b"last"], "cut at {cut}");
        }
    }

    #[test]
    fn each_way_of_meeting_a_conflict_is_its_own_transaction() {
        let put = entry(br#"{"key":"a","value":"1"}"#, &Bytes::new()).unwrap().put;
        assert!(transaction(OnConflict::Overwrite, vec![put.clone()]).compares.is_empty());
        assert_eq!(transaction(OnConflict::Fail, vec![put.clone()]).compares, [missing(&put.key)]);
        let skip = transaction(OnConflict::Skip, vec![put]);
        assert!(skip.compares.is_empty() && matches!(&skip.success[..], [Op::Txn(inner)] if inner.compares.len() == 1));
    }
}
