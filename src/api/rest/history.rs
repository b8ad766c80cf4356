//! A key's versions: `/v1/history/{key}`.

use super::dto;
use super::keys::KEY_ENCODING;
use super::kv::not_found;
use super::query::Names;
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::Writer;
use crate::model::limits::{HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX};
use crate::model::{HistoryItem, HistoryOp, HistoryPage, KeyValue, Revision};
use hyper::StatusCode;

const GET: Names = Names { allowed: &[&["limit", "before", "keys_only"], READ, KEY_ENCODING, ALWAYS], later: &["ns"] };

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query(&GET)?;
    let key = call.key(&query)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let read = read_options(&query)?;
    let keys_only = query.flag("keys_only")?;
    let limit = query.count("limit")?.unwrap_or(HISTORY_PAGE_DEFAULT).min(HISTORY_PAGE_MAX);
    let before = query.revision("before")?;
    let request = HistoryOp { key: key.clone(), limit, before, keys_only };
    let answer = call.state.service.history(&context, read, request).await?;
    let Some(page) = answer.body else { return Err(not_found(&key).header(answer.header)) };
    let mut json = Writer::with_capacity(512);
    write(&mut json, answer.header.revision, &key, &page, keys_only);
    call.json(StatusCode::OK, Some(answer.header), json)
}

fn write(json: &mut Writer, revision: Revision, key: &[u8], page: &HistoryPage, keys_only: bool) {
    json.open();
    json.int("revision", revision);
    json.key(key);
    json.int("compacted_before", page.compacted_revision);
    json.name("items");
    json.open_list();
    page.items.iter().for_each(|item| write_item(json, item, keys_only));
    json.close_list();
    json.bool("more", page.more);
    if let Some(last) = page.items.last().filter(|_| page.more) {
        json.int("next_before", revision_of(last));
    }
    json.close();
}

fn revision_of(item: &HistoryItem) -> Revision {
    match item {
        HistoryItem::Put(kv) => kv.mod_revision,
        HistoryItem::Delete { revision, .. } => *revision,
    }
}

fn write_item(json: &mut Writer, item: &HistoryItem, keys_only: bool) {
    json.open();
    match item {
        HistoryItem::Put(kv) => write_put(json, kv, keys_only),
        HistoryItem::Delete { revision, reason } => {
            json.text("type", "delete");
            json.int("revision", *revision);
            json.int("version", 0);
            json.text("reason", dto::reason(*reason));
        }
    }
    json.close();
}

fn write_put(json: &mut Writer, kv: &KeyValue, keys_only: bool) {
    json.text("type", "put");
    json.int("revision", kv.mod_revision);
    json.int("version", kv.version);
    if keys_only {
        json.count("size", kv.value_size);
    } else {
        json.bytes("value", "value_base64", &kv.value);
    }
    if let Some(content_type) = &kv.content_type {
        json.text("content_type", content_type);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeleteReason;

    #[test]
    fn a_page_reads_as_documented_and_says_where_to_go_on() {
        let kv = KeyValue {
            key: "a".into(),
            value: "1".into(),
            value_size: 1,
            content_type: None,
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 0,
        };
        let items = vec![HistoryItem::Delete { revision: 5, reason: DeleteReason::Expired }, HistoryItem::Put(kv)];
        let page = HistoryPage { compacted_revision: 1, items, more: true };
        let mut json = Writer::default();
        write(&mut json, 9, b"a", &page, false);
        let expected = concat!(
            r#"{"revision":9,"key":"a","compacted_before":1,"items":["#,
            r#"{"type":"delete","revision":5,"version":0,"reason":"expired"},"#,
            r#"{"type":"put","revision":2,"version":1,"value":"1"}],"more":true,"next_before":2}"#
        );
        assert_eq!(String::from_utf8(json.into_bytes()).unwrap(), expected);
    }
}
