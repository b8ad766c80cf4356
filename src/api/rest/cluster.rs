//! The cluster and its members: `/v1/cluster`.

use super::fields::Scalars;
use super::query::{Names, Query, percent_decode};
use crate::api::address::is_host_and_port;
use crate::api::call::{ALWAYS, Call, Outcome};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::service::{ClusterMember, ClusterReply, MemberPatch, MemberRole, MemberStanding, NewMember};
use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use std::time::Duration;

const PLAIN: Names = Names { allowed: &[ALWAYS], later: &[] };
const MEMBER: Names = Names { allowed: &[&["name", "peer_url", "client_url"], ALWAYS], later: &[] };
const PROMOTE: Names = Names { allowed: &[&["wait", "max_lag"], ALWAYS], later: &[] };
const REPLACE: Names = Names { allowed: &[&["name", "peer_url", "client_url", "wait", "max_lag"], ALWAYS], later: &[] };
const REMOVE: Names = Names { allowed: &[&["force"], ALWAYS], later: &[] };
const LEADER: Names = Names { allowed: &[&["to"], ALWAYS], later: &[] };

/// Clusters have no names of their own yet.
pub(crate) const CLUSTER_NAME: &str = "tenure";

const WAIT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(600);
const LAG_ENTRIES: u64 = 1000;

/// The name or id in the path: what stands between the route's fixed part and the next slash.
fn named(call: &Call) -> Result<String, Problem> {
    let text = call.raw_key().split('/').next().unwrap_or_default();
    let decoded = percent_decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.filter(|name| !name.is_empty()).ok_or_else(|| Problem::parameter("id", "the path names no member"))
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    call.accepts(&["application/json"])?;
    let answer = call.state.service.cluster().await;
    let ClusterReply { id, members, quorum, tolerates, healthy } = answer.body;
    let mut json = Writer::with_capacity(256 + 384 * members.len());
    json.open();
    json.text("id", &format!("{id:016x}"));
    json.text("name", CLUSTER_NAME);
    json.int("revision", answer.header.revision);
    json.count("term", answer.header.term);
    match &answer.header.leader_name {
        Some(leader) => json.text("leader", leader),
        None => json.raw("leader", b"null"),
    }
    json.name("members");
    list(&mut json, &members);
    json.count("quorum", quorum);
    json.count("tolerates", tolerates);
    json.bool("healthy", healthy);
    json.text("version", env!("CARGO_PKG_VERSION"));
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn members(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    call.accepts(&["application/json"])?;
    let answer = call.state.service.cluster().await;
    let mut json = Writer::with_capacity(64 + 384 * answer.body.members.len());
    json.open();
    json.name("members");
    list(&mut json, &answer.body.members);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn member(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    call.accepts(&["application/json"])?;
    let answer = call.state.service.cluster_member(&named(call)?).await?;
    let mut json = Writer::with_capacity(384);
    write(&mut json, &answer.body, None);
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn add(call: &mut Call) -> Outcome {
    let query = call.query(&MEMBER)?;
    super::idempotency::refuse(call)?;
    let context = call.context(&query)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let new = new_member(call, &mut scalars)?;
    scalars.finish()?;
    let answer = call.state.service.add_member(&context, new).await?;
    let seeds = call.state.service.cluster().await.body.members;
    let seeds = seeds.iter().filter(|seed| seed.id != answer.body.id && !seed.peer_url.is_empty());
    let seeds: Vec<&str> = seeds.map(|seed| seed.peer_url.as_str()).collect();
    let join = format!(
        "tenure serve --name {} --listen-peer 0.0.0.0:{} --advertise-peer {} --join {}",
        answer.body.name,
        answer.body.peer_url.rsplit(':').next().unwrap_or_default(),
        answer.body.peer_url,
        seeds.join(",")
    );
    let location = format!("/v1/cluster/members/{:016x}", answer.body.id);
    let mut json = Writer::with_capacity(512);
    write(&mut json, &answer.body, Some(&join));
    let mut reply = call.json(StatusCode::CREATED, Some(answer.header), json)?;
    if let Ok(location) = HeaderValue::try_from(location) {
        reply.response.headers_mut().insert(LOCATION, location);
    }
    Ok(reply)
}

pub(crate) async fn patch(call: &mut Call) -> Outcome {
    let query = call.query(&MEMBER)?;
    super::idempotency::refuse(call)?;
    let (context, name) = (call.context(&query)?, named(call)?);
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let patch = MemberPatch {
        name: scalars.text("name")?,
        peer_url: url(&mut scalars, "peer_url")?,
        client_url: url(&mut scalars, "client_url")?,
    };
    scalars.finish()?;
    if patch == MemberPatch::default() {
        return Err(Problem::parameter("name", "give at least one of `name`, `peer_url` and `client_url`"));
    }
    let answer = call.state.service.patch_member(&context, &name, patch).await?;
    answered(call, answer)
}

pub(crate) async fn promote(call: &mut Call) -> Outcome {
    let query = call.query(&PROMOTE)?;
    super::idempotency::refuse(call)?;
    super::fence::refuse(call)?;
    let name = named(call)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let (wait, max_lag) = patience(&mut scalars)?;
    scalars.finish()?;
    let answer = call.state.service.promote_member(&name, wait, max_lag).await?;
    answered(call, answer)
}

pub(crate) async fn remove(call: &mut Call) -> Outcome {
    let query = call.query(&REMOVE)?;
    super::idempotency::refuse(call)?;
    let (context, name) = (call.context(&query)?, named(call)?);
    let answer = call.state.service.remove_member(&context, &name, query.flag("force")?).await?;
    answered(call, answer)
}

pub(crate) async fn replace(call: &mut Call) -> Outcome {
    let query = call.query(&REPLACE)?;
    super::idempotency::refuse(call)?;
    let (context, name) = (call.context(&query)?, named(call)?);
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let new = new_member(call, &mut scalars)?;
    let (wait, max_lag) = patience(&mut scalars)?;
    scalars.finish()?;
    let answer = call.state.service.replace_member(&context, &name, new, wait, max_lag).await?;
    answered(call, answer)
}

pub(crate) async fn leader(call: &mut Call) -> Outcome {
    let query: Query = call.query(&LEADER)?;
    super::idempotency::refuse(call)?;
    let context = call.context(&query)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let to = scalars.text("to")?;
    scalars.finish()?;
    let answer = call.state.service.move_leader(&context, to.as_deref()).await?;
    let mut json = Writer::with_capacity(48);
    json.open();
    json.text("leader", &answer.body);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

fn answered(call: &mut Call, answer: crate::service::Answer<ClusterMember>) -> Outcome {
    let mut json = Writer::with_capacity(384);
    write(&mut json, &answer.body, None);
    call.json(StatusCode::OK, Some(answer.header), json)
}

fn new_member(call: &Call, scalars: &mut Scalars<'_, '_>) -> Result<NewMember, Problem> {
    let missing = |name: &'static str| Problem::parameter(name, format!("`{name}` is missing"));
    let name = scalars.text("name")?.ok_or_else(|| missing("name"))?;
    let peer_url = url(scalars, "peer_url")?.ok_or_else(|| missing("peer_url"))?;
    let client_url = url(scalars, "client_url")?.unwrap_or_default();
    // Random and never drawn twice, as the numbers of members that name themselves are.
    let id = u64::try_from(call.state.entropy.positive_id()).unwrap_or(1) >> 10 | 1;
    Ok(NewMember { id, name, peer_url, client_url })
}

/// `http://HOST:PORT`.
fn url(scalars: &mut Scalars<'_, '_>, name: &'static str) -> Result<Option<String>, Problem> {
    let Some(text) = scalars.text(name)? else { return Ok(None) };
    if !text.strip_prefix("http://").is_some_and(is_host_and_port) {
        let problem = format!("`{name}` is not a URL such as http://10.0.0.4:2380, without path or user");
        return Err(Problem::parameter(name, problem));
    }
    Ok(Some(text))
}

fn patience(scalars: &mut Scalars<'_, '_>) -> Result<(Duration, u64), Problem> {
    let wait = scalars.duration("wait")?.unwrap_or(WAIT);
    if wait > WAIT_MAX {
        return Err(Problem::parameter("wait", format!("`wait` is at most {}s", WAIT_MAX.as_secs())));
    }
    let max_lag = scalars.revision("max_lag")?.map_or(LAG_ENTRIES, |lag| u64::try_from(lag).unwrap_or(0));
    Ok((wait, max_lag))
}

fn list(json: &mut Writer, members: &[ClusterMember]) {
    json.open_list();
    members.iter().for_each(|member| write(json, member, None));
    json.close_list();
}

fn write(json: &mut Writer, member: &ClusterMember, join: Option<&str>) {
    json.open();
    json.text("id", &format!("{:016x}", member.id));
    json.text("name", &member.name);
    json.text(
        "role",
        match member.role {
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
        },
    );
    json.text(
        "state",
        match member.standing {
            MemberStanding::Leader => "leader",
            MemberStanding::Follower => "follower",
            MemberStanding::Candidate => "candidate",
            MemberStanding::Unreachable => "unreachable",
        },
    );
    json.text("peer_url", &member.peer_url);
    json.text("client_url", &member.client_url);
    match &member.version {
        Some(version) => json.text("version", version),
        None => json.raw("version", b"null"),
    }
    let numbers = [
        ("applied_index", member.applied_index),
        ("match_index", member.match_index),
        ("lag_entries", member.lag_entries),
        ("last_contact_ms", member.last_contact_ms),
        ("db_bytes", member.db_bytes),
    ];
    for (name, value) in numbers {
        match value {
            Some(value) => json.count(name, value),
            None => json.raw(name, b"null"),
        }
    }
    if let Some(join) = join {
        json.text("join", join);
    }
    json.close();
}
