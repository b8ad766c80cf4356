//! `/livez` and `/readyz` as Kubernetes asks, `/health` as etcd answers.

use super::text;
use crate::api::call::{Call, Outcome};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::rest::query::{Names, Query};
use crate::service::Check;
use hyper::StatusCode;
use std::time::Duration;

const PROBE: Names = Names { allowed: &[&["verbose", "exclude", "timeout", "pretty"]], later: &[] };
const HEALTH: Names = Names { allowed: &[&["serializable", "exclude", "timeout", "pretty"]], later: &[] };
/// Probes give up after a second or so: answer before that.
const PROBE_TIMEOUT: Duration = Duration::from_millis(900);
const PLAIN: &str = "text/plain; charset=utf-8";

/// The process answers: that is all liveness means. Waiting for a quorum here would have it restarted.
pub(crate) fn livez(call: &mut Call) -> Outcome {
    let query = call.query(&PROBE)?;
    let alive = [Check { name: "ping", result: Ok(()) }];
    probe(&query, "livez", &alive).map(|(status, page)| text(status, PLAIN, page))
}

pub(crate) async fn readyz(call: &mut Call) -> Outcome {
    let query = call.query(&PROBE)?;
    let timeout = query.duration("timeout")?.unwrap_or(PROBE_TIMEOUT);
    let checks = call.state.service.readiness(timeout).await;
    probe(&query, "readyz", &checks).map(|(status, page)| text(status, PLAIN, page))
}

/// Comma-separated, as the parameter may be given only once.
fn excluded<'a>(query: &'a Query, known: &[Check]) -> Result<Vec<&'a str>, Problem> {
    let names: Vec<&str> =
        query.text("exclude")?.unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
    match names.iter().find(|name| known.iter().all(|check| check.name != **name)) {
        None => Ok(names),
        Some(name) => {
            let known: Vec<&str> = known.iter().map(|check| check.name).collect();
            Err(Problem::parameter("exclude", format!("there is no check `{name}`; there are {}", known.join(", "))))
        }
    }
}

/// In the form of the Kubernetes API server: `[+]name ok` and a verdict.
fn probe(query: &Query, what: &str, checks: &[Check]) -> Result<(StatusCode, String), Problem> {
    let excluded = excluded(query, checks)?;
    let mut page = String::new();
    let mut failed = false;
    for check in checks {
        let line = match &check.result {
            _ if excluded.contains(&check.name) => format!("[+]{} excluded: ok\n", check.name),
            Ok(()) => format!("[+]{} ok\n", check.name),
            Err(why) => {
                failed = true;
                format!("[-]{} failed: {why}\n", check.name)
            }
        };
        page.push_str(&line);
    }
    Ok(if failed {
        (StatusCode::SERVICE_UNAVAILABLE, page + what + " check failed\n")
    } else if query.flag("verbose")? {
        (StatusCode::OK, page + what + " check passed\n")
    } else {
        (StatusCode::OK, "ok\n".to_owned())
    })
}

/// etcd's health: alarms, a leader, and a linearizable read unless a serializable one is enough.
pub(crate) async fn health(call: &mut Call) -> Outcome {
    let query = call.query(&HEALTH)?;
    let serializable = query.flag("serializable")?;
    let timeout = query.duration("timeout")?.unwrap_or(PROBE_TIMEOUT);
    let excluded: Vec<&str> = query.text("exclude")?.unwrap_or_default().split(',').collect();
    let status = call.state.service.status();
    let alarm = status.alarms.iter().map(|alarm| etcd_alarm(alarm)).find(|alarm| !excluded.contains(&&**alarm));
    let reason = match alarm {
        Some(alarm) => format!("ALARM {alarm}"),
        None if serializable => String::new(),
        None if status.leader.is_none() => "RAFT NO LEADER".to_owned(),
        None => {
            let checks = call.state.service.readiness(timeout).await;
            checks
                .into_iter()
                .find_map(|check| check.result.err())
                .map(|why| format!("RANGE ERROR:{why}"))
                .unwrap_or_default()
        }
    };
    let healthy = reason.is_empty();
    let mut json = Writer::with_capacity(64);
    json.open();
    // A string, as in etcd.
    json.text("health", if healthy { "true" } else { "false" });
    json.text("reason", &reason);
    json.close();
    call.json(if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, None, json)
}

fn etcd_alarm(alarm: &str) -> String {
    match alarm {
        "storage-full" => "NOSPACE".to_owned(),
        other => other.to_ascii_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check { name: "leader", result: Ok(()) },
            Check { name: "read", result: Err("the deadline passed".to_owned()) },
        ]
    }

    fn probed(raw: &str, checks: &[Check]) -> (u16, String) {
        let query = Query::parse(Some(raw), &PROBE).unwrap();
        probe(&query, "readyz", checks).map(|(status, page)| (status.as_u16(), page)).unwrap()
    }

    #[test]
    fn a_failed_check_is_shown_and_may_be_excluded() {
        let expected = "[+]leader ok\n[-]read failed: the deadline passed\nreadyz check failed\n";
        assert_eq!(probed("", &checks()), (503, expected.to_owned()));
        assert_eq!(probed("exclude=read", &checks()), (200, "ok\n".to_owned()));
        let expected = "[+]leader ok\n[+]read excluded: ok\nreadyz check passed\n";
        assert_eq!(probed("exclude=read&verbose", &checks()), (200, expected.to_owned()));
        let query = Query::parse(Some("exclude=rade"), &PROBE).unwrap();
        assert!(probe(&query, "readyz", &checks()).is_err(), "a typo would silently check less than was meant");
    }
}
