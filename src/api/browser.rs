//! The guard against web pages that reach for a node from somebody's browser.
//!
//! A page may send simple requests to any address without asking (and a name of its own may resolve
//! to 127.0.0.1). Browsers say where a request comes from; curl and libraries send none of these
//! headers and are untouched.

use super::problem::Problem;
use super::status::Code;
use super::{Body, Options};
use hyper::header::{
    ACCEPT_LANGUAGE, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, REFERER, USER_AGENT, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use std::net::IpAddr;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Refuses what a foreign page must not do.
pub(crate) fn guard(parts: &Parts, options: &Options) -> Result<(), Problem> {
    // A browser's plain navigation over http to a rebound name carries neither Origin nor Sec-Fetch-*,
    // so whatever marks a browser counts.
    if options.listen.ip().is_loopback() && from_browser(&parts.headers) && !host(parts).is_some_and(is_loopback_host) {
        return Err(Problem::new(
            Code::CrossSite,
            "a browser must address this loopback listener by a loopback name, against DNS rebinding",
        )
        .hint("use localhost or 127.0.0.1 in the address"));
    }
    if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let origin = parts.headers.get(ORIGIN);
    if origin.is_some_and(|origin| is_listed(origin, options)) {
        return Ok(());
    }
    let cross_site = parts.headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site");
    if cross_site || origin.is_some_and(|origin| !is_same(origin, parts)) {
        return Err(Problem::new(Code::CrossSite, "a page of another origin may not change this store"));
    }
    Ok(())
}

/// The answer to a preflight of a listed origin.
pub(crate) fn preflight(parts: &Parts, options: &Options) -> Option<Response<Body>> {
    let asked = parts.method == Method::OPTIONS && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let origin = parts.headers.get(ORIGIN).filter(|origin| is_listed(origin, options)).filter(|_| asked)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    allow(headers, origin.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, PUT, PATCH, POST, DELETE"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Tenure-Fence, X-Request-Id, Last-Event-ID",
        ),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Some(response)
}

/// Lets a listed origin read the answer.
pub(crate) fn share(request: &HeaderMap, options: &Options, answer: &mut HeaderMap) {
    if options.cors_origins.is_empty() {
        return;
    }
    answer.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = request.get(ORIGIN).filter(|origin| is_listed(origin, options)) {
        allow(answer, origin.clone());
    }
}

fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(
            "ETag, Link, Tenure-Revision, Tenure-Served-By, Tenure-Leader, Tenure-Term, Tenure-Create-Revision, \
             Tenure-Version, Tenure-Lease, Tenure-Wait-Ms, X-Request-Id, Idempotency-Replayed",
        ),
    );
}

fn from_browser(headers: &HeaderMap) -> bool {
    [ORIGIN, SEC_FETCH_SITE, SEC_FETCH_MODE, REFERER, ACCEPT_LANGUAGE].iter().any(|name| headers.contains_key(name))
        || headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"))
}

/// `Host`, or `:authority` over HTTP/2.
fn host(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(HOST)?.to_str().ok(),
    }
}

/// Without the port.
fn host_name(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.split(':').next().unwrap_or(host)
}

fn is_loopback_host(host: &str) -> bool {
    let name = host_name(host).trim_end_matches('.');
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let lower = name.to_ascii_lowercase();
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || lower == "localhost"
        || lower.ends_with(".localhost")
}

fn is_listed(origin: &HeaderValue, options: &Options) -> bool {
    options.cors_origins.iter().any(|listed| origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes()))
}

/// True if the page came from this very host and port. `null` never does.
fn is_same(origin: &HeaderValue, parts: &Parts) -> bool {
    let (Ok(origin), Some(host)) = (origin.to_str(), host(parts)) else { return false };
    let (scheme, origin_host) = match origin.split_once("://") {
        Some(split) => split,
        None => return false,
    };
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let without_port = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    without_port(origin_host) == without_port(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn options(listen: &str) -> Options {
        Options {
            listen: listen.parse().unwrap(),
            cors_origins: vec!["https://console.example".to_owned()],
            request_bytes_max: 1,
            etcd: crate::api::EtcdOptions { progress_every: SECOND, leader_patience: SECOND },
            config: tokio::sync::watch::channel(serde_json::Value::Null).1,
        }
    }

    fn verdict(listen: &str, method: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/v1/kv/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard(&request.body(()).unwrap().into_parts().0, &options(listen)).is_ok()
    }

    const LOOPBACK: &str = "127.0.0.1:2379";
    const PUBLIC: &str = "10.0.0.1:2379";

    #[test]
    fn clients_without_browser_headers_are_untouched() {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            assert!(verdict(LOOPBACK, method, &[("host", "node.lan:2379"), ("user-agent", "curl/8")]));
            assert!(verdict(PUBLIC, method, &[("host", "node.lan:2379")]));
        }
    }

    #[test]
    fn a_foreign_page_may_not_mutate() {
        let host = ("host", "10.0.0.1:2379");
        for foreign in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://10.0.0.1:3000"),
            ("origin", "ftp://10.0.0.1:2379"),
            ("sec-fetch-site", "cross-site"),
        ] {
            for method in ["PUT", "POST", "PATCH", "DELETE"] {
                assert!(!verdict(PUBLIC, method, &[host, foreign]), "{method} {foreign:?}");
            }
            assert!(verdict(PUBLIC, "GET", &[host, foreign]), "reading is the browser's own same-origin rule");
        }
        // A page on another port of the same site: `same-site`, but another origin.
        assert!(!verdict(
            LOOPBACK,
            "POST",
            &[("host", "localhost:2379"), ("sec-fetch-site", "same-site"), ("origin", "http://localhost:3000")]
        ));
    }

    #[test]
    fn the_nodes_own_pages_and_listed_origins_may() {
        let host = ("host", "Node.lan:80");
        assert!(verdict(PUBLIC, "PUT", &[host, ("origin", "http://node.lan"), ("sec-fetch-site", "same-origin")]));
        assert!(verdict(
            PUBLIC,
            "PUT",
            &[host, ("origin", "https://console.example"), ("sec-fetch-site", "cross-site")]
        ));
    }

    #[test]
    fn a_rebound_name_is_refused_on_loopback_even_for_reads() {
        for mark in [("origin", "http://evil.example:2379"), ("user-agent", "Mozilla/5.0"), ("referer", "http://x/")] {
            assert!(!verdict(LOOPBACK, "GET", &[("host", "evil.example:2379"), mark]), "{mark:?}");
            assert!(verdict(PUBLIC, "GET", &[("host", "node.lan:2379"), mark]), "{mark:?}");
        }
        for host in
            ["localhost", "localhost:2379", "LOCALHOST.", "a.localhost:1", "127.0.0.1:2379", "127.9.9.9", "[::1]:2379"]
        {
            assert!(verdict(LOOPBACK, "GET", &[("host", host), ("user-agent", "Mozilla/5.0")]), "{host}");
        }
        for host in ["localhost.evil.example", "127.0.0.1.evil.example", "[::2]:2379", "evil-localhost", ""] {
            assert!(!verdict(LOOPBACK, "GET", &[("host", host), ("user-agent", "Mozilla/5.0")]), "{host}");
        }
        assert!(!verdict(LOOPBACK, "GET", &[("user-agent", "Mozilla/5.0")]), "no Host at all");
    }

    #[test]
    fn preflights_are_answered_for_listed_origins_only() {
        let ask = |origin: &str| {
            let request = Request::builder()
                .method("OPTIONS")
                .header("origin", origin)
                .header("access-control-request-method", "PUT");
            preflight(&request.body(()).unwrap().into_parts().0, &options(PUBLIC))
        };
        assert!(ask("https://evil.example").is_none());
        let response = ask("https://console.example").unwrap();
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "https://console.example");
    }
}
