//! `txn`: a transaction from a file, standard input, or asked for line by line.

use super::prompt;
use crate::cli::args::Txn;
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, shown};
use crate::cli::session::{Session, repeatable};
use crate::client::{Body, BytesForm, Entry, Method, Request};
use serde::Deserialize;
use serde_json::Value;
use std::io::IsTerminal as _;
use std::path::Path;

#[derive(Debug, Deserialize)]
struct TxnResult {
    succeeded: bool,
    #[serde(default)]
    failed_if: Vec<u64>,
    revision: i64,
    results: Vec<Value>,
}

pub(in crate::cli) async fn txn(session: &mut Session, args: &Txn) -> Result<(), CliError> {
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson])?;
    let body = if args.interactive {
        let asks = std::io::stdin().is_terminal();
        let txn = prompt::read(&mut std::io::stdin().lock(), &mut std::io::stderr(), asks)?;
        Body::Inline(txn.to_string().into())
    } else if args.file == Path::new("-") {
        Body::Stdin
    } else {
        Body::File(args.file.clone())
    };
    let request = Request::new(Method::Post, "/v1/txn")
        .flag("strict", args.strict)
        .header("Content-Type", "application/json")
        .body(body);
    let request = repeatable(request, &args.retry);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    match mode {
        Mode::Json => session.out.json_as_sent(&answer.body),
        Mode::Ndjson => session.out.json_line(&answer.json::<Value>()?),
        _ => tell(session, &answer.json()?),
    }
}

fn tell(session: &mut Session, txn: &TxnResult) -> Result<(), CliError> {
    let outcome = if txn.succeeded {
        format!("succeeded, revision {}", txn.revision)
    } else {
        let failed: Vec<String> = txn.failed_if.iter().map(u64::to_string).collect();
        format!("did not succeed (compare {}), revision {}", failed.join(", "), txn.revision)
    };
    session.out.line(outcome)?;
    for result in &txn.results {
        for line in result_lines(result) {
            session.out.line(format!("  {line}"))?;
        }
    }
    Ok(())
}

fn result_lines(result: &Value) -> Vec<String> {
    let Some((kind, body)) = result.as_object().and_then(|members| members.iter().next()) else {
        return vec![result.to_string()];
    };
    let key = || {
        let form = BytesForm { text: body["key"].as_str(), base64: body["key_base64"].as_str() };
        shown(&form.bytes())
    };
    let entry_line = |entry: &Value| match serde_json::from_value::<Entry>(entry.clone()) {
        Ok(entry) => format!("{} = {}", shown(&entry.key_bytes()), shown(&entry.value_bytes())),
        Err(_) => entry.to_string(),
    };
    match kind.as_str() {
        "put" if body["created"] == true => vec![format!("put {}: created", key())],
        "put" => vec![format!("put {}: version {}", key(), body["version"])],
        "delete" => vec![format!("deleted {}", body["deleted"])],
        "add" => vec![format!("{} = {}", key(), body["value"])],
        "get" if body.is_null() => vec!["not found".to_owned()],
        "get" => vec![entry_line(body)],
        "list" => {
            let items = body["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            match (items.is_empty(), body.get("count")) {
                (true, Some(count)) => vec![format!("{count} keys")],
                (true, None) => vec!["no keys".to_owned()],
                (false, _) => items.iter().map(entry_line).collect(),
            }
        }
        _ => vec![result.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_in_words() {
        let lines = |result: Value| result_lines(&result).join("|");
        assert_eq!(lines(json!({"put": {"key": "a", "revision": 3, "version": 1, "created": true}})), "put a: created");
        assert_eq!(
            lines(json!({"put": {"key": "a", "revision": 3, "version": 2, "created": false}})),
            "put a: version 2"
        );
        assert_eq!(lines(json!({"delete": {"deleted": 2, "revision": 4}})), "deleted 2");
        assert_eq!(lines(json!({"get": null})), "not found");
        assert_eq!(lines(json!({"get": {"key": "a", "value_base64": "/w=="}})), "a = \\xff");
        assert_eq!(lines(json!({"add": {"key": "n", "value": -3}})), "n = -3");
        assert_eq!(
            lines(json!({"list": {"items": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]}})),
            "a = 1|b = 2"
        );
        assert_eq!(lines(json!({"list": {"items": [], "count": 7}})), "7 keys");
    }
}
