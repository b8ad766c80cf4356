//! What stands outside `/v1`: health, version, metrics, the contract itself and a cheat sheet.

pub(crate) mod health;
pub(crate) mod openapi;

use super::ETCD_VERSION;
use super::body::Body;
use super::call::{ALWAYS, Call, Outcome, Reply};
use super::json::Writer;
use super::problem::Problem;
use super::rest::query::Names;
use super::status::Code;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use prometheus_client::encoding::text::encode;

const PLAIN: Names = Names { allowed: &[ALWAYS], later: &[] };

/// A text that is never stored by anybody on the way.
fn text(status: StatusCode, content_type: &'static str, text: impl Into<bytes::Bytes>) -> Reply {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Reply { header: None, response }
}

pub(crate) fn version(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    let mut json = Writer::with_capacity(128);
    json.open();
    json.text("etcdserver", ETCD_VERSION);
    json.text("etcdcluster", "3.6.0");
    json.text("storage", "3.6.0");
    json.text("tenure", env!("CARGO_PKG_VERSION"));
    json.close();
    call.json(StatusCode::OK, None, json)
}

pub(crate) fn metrics(call: &mut Call) -> Outcome {
    // Scrapers may be configured with parameters of their own, so none are refused here.
    call.state.service.note_sizes();
    let mut page = String::with_capacity(64 << 10);
    encode(&mut page, &call.state.registry)
        .map_err(|_| Problem::new(Code::Internal, "the metrics could not be written"))?;
    Ok(text(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", page))
}

/// Twenty lines for somebody who has just found this port.
pub(crate) fn root(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    let status = call.state.service.status();
    let named = call.parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = call.parts.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let address = named.or(host).unwrap_or_else(|| call.state.options.listen.to_string());
    let page = cheat_sheet(&address, &status.name, status.leader.as_deref().unwrap_or("none"), status.revision);
    Ok(text(StatusCode::OK, "text/plain; charset=utf-8", page))
}

fn cheat_sheet(address: &str, member: &str, leader: &str, revision: i64) -> String {
    format!(
        "tenure {version} - member {member}, leader {leader}, revision {revision}

put      curl -X PUT {address}/v1/kv/hello -d world
get      curl {address}/v1/kv/hello
head     curl -I {address}/v1/kv/hello
list     curl '{address}/v1/kv?prefix=app/&keys_only'
pages    curl -i '{address}/v1/kv?prefix=app/&limit=100'
export   curl -H 'Accept: application/x-ndjson' '{address}/v1/kv?prefix=app/'
create   curl -X PUT '{address}/v1/kv/job?cas=0' -d mine
cas      curl -X PUT -H 'If-Match: \"{revision}\"' {address}/v1/kv/job -d next
wait     curl -H 'If-None-Match: \"{revision}\"' '{address}/v1/kv/job?wait=60s'
delete   curl -X DELETE {address}/v1/kv/hello
count    curl -X POST '{address}/v1/counters/hits?add=1'
history  curl '{address}/v1/history/hello?limit=5'
txn      curl --json '{{\"if\":[{{\"key\":\"a\",\"exists\":false}}],\"then\":[{{\"put\":{{\"key\":\"a\",\"value\":\"1\"}}}}]}}' {address}/v1/txn
status   curl {address}/v1/status
metrics  curl {address}/metrics
ready    curl '{address}/readyz?verbose'
contract curl {address}/openapi.yaml
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheat_sheet_names_this_node() {
        let page = cheat_sheet("10.0.0.1:2379", "n1", "n2", 42);
        assert!(
            page.starts_with(&format!("tenure {} - member n1, leader n2, revision 42\n", env!("CARGO_PKG_VERSION")))
        );
        assert!(page.contains("curl 10.0.0.1:2379/v1/kv/hello\n") && page.contains("If-Match: \"42\""), "{page}");
    }
}
