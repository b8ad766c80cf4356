//! etcd's `Cluster`. Members that are added come in as learners, as everywhere here; one that is asked for
//! as a voter is promoted by `tenure member promote` or `MemberPromote` once it has caught up.

use super::Door;
use super::convert::header;
use super::errors::{MEMBER_BAD_URLS, MEMBER_NOT_FOUND, MEMBER_NOT_LEARNER, PEER_URL_EXISTS, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::cluster_server::Cluster;
use crate::api::address::is_host_and_port;
use crate::model::Failure;
use crate::service::{Context, Header, KnownMember, MemberPatch, MemberRole, NewMember};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How far a learner may be behind when it is promoted, as REST has it by default.
const LAG_MAX: u64 = 1_000;

#[tonic::async_trait]
impl Cluster for Door {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let context = self.context(&request)?;
        let peer_url = one_url(request.into_inner().peer_ur_ls)?;
        if self.service().members().iter().any(|member| member.peer_url == peer_url) {
            return Err(known(PEER_URL_EXISTS));
        }
        // etcd names a member when it starts; here it is known by its address until then.
        let name = peer_url.split_once("://").map_or(peer_url.as_str(), |(_, address)| address).replace(':', "-");
        let id = self.state.entropy.positive_id().unsigned_abs() >> 10 | 1;
        let new = NewMember { id, name, peer_url, client_url: String::new() };
        let answer = self.service().add_member(&context, new).await.map_err(|failure| self.failed(&failure))?;
        let members = self.all();
        let member = members.iter().find(|member| member.id == answer.body.id).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: Some(header(&answer.header)), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let context = self.context(&request)?;
        let member = self.known(request.into_inner().id)?;
        let answer = self.service().remove_member(&context, &named(member.id), false).await;
        let header = self.changed(answer.map(|answer| answer.header))?;
        Ok(Response::new(pb::MemberRemoveResponse { header, members: self.all() }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let context = self.context(&request)?;
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let peer_url = one_url(peer_ur_ls)?;
        let member = self.known(id)?;
        let patch = MemberPatch { peer_url: Some(peer_url), ..MemberPatch::default() };
        let answer = self.service().patch_member(&context, &named(member.id), patch).await;
        let header = self.changed(answer.map(|answer| answer.header))?;
        Ok(Response::new(pb::MemberUpdateResponse { header, members: self.all() }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let context = self.context(&request)?;
        if request.into_inner().linearizable {
            self.confirmed(&context).await?;
        }
        Ok(Response::new(pb::MemberListResponse { header: Some(self.now()), members: self.all() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.context(&request)?;
        let member = self.known(request.into_inner().id)?;
        if member.role == MemberRole::Voter {
            return Err(known(MEMBER_NOT_LEARNER));
        }
        let answer = self.service().promote_member(&named(member.id), Duration::ZERO, LAG_MAX).await;
        let header = self.changed(answer.map(|answer| answer.header))?;
        Ok(Response::new(pb::MemberPromoteResponse { header, members: self.all() }))
    }
}

/// Members are found by their id in hexadecimal.
fn named(id: u64) -> String {
    format!("{id:x}")
}

/// Each member has one peer URL.
fn one_url(urls: Vec<String>) -> Result<String, Status> {
    let [url] = <[String; 1]>::try_from(urls).map_err(|_| known(MEMBER_BAD_URLS))?;
    let address = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let good = address.is_some_and(is_host_and_port);
    if good { Ok(url) } else { Err(known(MEMBER_BAD_URLS)) }
}

fn member(known: KnownMember) -> pb::Member {
    let urls = |url: String| if url.is_empty() { Vec::new() } else { vec![url] };
    // One that has not started yet has no client URL, by which etcd's clients tell; its name is ours.
    let name = if known.client_url.is_empty() { String::new() } else { known.name };
    pb::Member {
        id: known.id,
        name,
        peer_ur_ls: urls(known.peer_url),
        client_ur_ls: urls(known.client_url),
        is_learner: known.role == MemberRole::Learner,
    }
}

impl Door {
    pub(super) fn now(&self) -> pb::ResponseHeader {
        header(&self.service().header())
    }

    pub(super) async fn confirmed(&self, context: &Context) -> Result<(), Status> {
        self.service().confirm(context).await.map_err(|failure| self.failed(&failure))
    }

    fn all(&self) -> Vec<pb::Member> {
        self.service().members().into_iter().map(member).collect()
    }

    fn known(&self, id: u64) -> Result<KnownMember, Status> {
        let found = self.service().members().into_iter().find(|member| member.id == id);
        found.ok_or_else(|| known(MEMBER_NOT_FOUND))
    }

    fn changed(&self, changed: Result<Header, Failure>) -> Result<Option<pb::ResponseHeader>, Status> {
        changed.map(|at| Some(header(&at))).map_err(|failure| self.failed(&failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_one_peer_url_with_a_port() {
        let urls = |urls: &[&str]| one_url(urls.iter().map(|&url| url.to_owned()).collect()).is_ok();
        assert!(urls(&["http://10.0.0.1:2380"]) && urls(&["https://a.example:2380"]));
        for bad in [&[][..], &["http://a:1", "http://b:1"], &["a:1"], &["http://a"], &["http://:1"], &["http://a:x"]] {
            assert!(!urls(bad), "{bad:?}");
        }
    }
}
