//! The members: who they are, how they do, and changes of them. Members are named by name or by id.

use super::{
    Answer, ClusterMember, ClusterReply, Context, KnownMember, MemberPatch, MemberRole, MemberStanding, NewMember,
    Service,
};
use crate::model::{Failure, Outcome, Rejection, Why, limits};
use crate::raft::{About, Change, Member, MemberState};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a member may take to say how it does.
const ABOUT: Duration = Duration::from_millis(500);
/// For the change itself, once the learner has caught up.
const CHANGE: Duration = Duration::from_secs(5);

impl Service {
    /// What is known of the cluster; nobody but this member need answer.
    pub async fn cluster(&self) -> Answer<ClusterReply> {
        let members = self.cluster_members().await;
        let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
        let (count, up) = voters.fold((0u64, 0u64), |(count, up), member| {
            (count + 1, up + u64::from(member.standing != MemberStanding::Unreachable))
        });
        let quorum = count / 2 + 1;
        let leads = members.iter().any(|member| member.standing == MemberStanding::Leader);
        let all_up = members.iter().all(|member| member.standing != MemberStanding::Unreachable);
        let body = ClusterReply {
            id: self.inner.member.cluster_id,
            members,
            quorum,
            tolerates: up.saturating_sub(quorum),
            healthy: leads && all_up,
        };
        self.answer(self.header(), body, false)
    }

    /// The membership as this member knows it, by id; nobody is asked.
    #[must_use]
    pub fn members(&self) -> Vec<KnownMember> {
        let voters = self.inner.parts.consensus.voters();
        let known = |(id, member): (u64, Member)| KnownMember {
            id,
            name: member.name,
            role: if voters.contains(&id) { MemberRole::Voter } else { MemberRole::Learner },
            peer_url: member.peer_url,
            client_url: member.client_url,
        };
        self.inner.parts.consensus.members().into_iter().map(known).collect()
    }

    /// One member.
    ///
    /// # Errors
    /// If there is none of that name or id.
    pub async fn cluster_member(&self, id_or_name: &str) -> Result<Answer<ClusterMember>, Failure> {
        let (id, _) = self.named(id_or_name)?;
        let member = self.cluster_members().await.into_iter().find(|member| member.id == id);
        let member = member.ok_or_else(|| Rejection::MemberNotFound(id_or_name.to_owned()))?;
        Ok(self.answer(self.header(), member, false))
    }

    async fn cluster_members(&self) -> Vec<ClusterMember> {
        let consensus = &self.inner.parts.consensus;
        let (states, about) = tokio::join!(consensus.member_states(ABOUT), consensus.about_members(ABOUT));
        let states: BTreeMap<u64, MemberState> =
            states.unwrap_or_default().into_iter().map(|state| (state.id, state)).collect();
        let leader = consensus.state().leader;
        let voters = consensus.voters();
        let one = |(id, member): (u64, Member)| {
            let (state, about) = (states.get(&id), about.get(&id));
            described(id, member, voters.contains(&id), leader, state, about)
        };
        consensus.members().into_iter().map(one).collect()
    }

    fn named(&self, id_or_name: &str) -> Result<(u64, Member), Failure> {
        let found = self.inner.parts.consensus.find_member(id_or_name);
        found.ok_or_else(|| Rejection::MemberNotFound(id_or_name.to_owned()).into())
    }

    /// Adds a learner that will join.
    ///
    /// # Errors
    /// If its name is taken, or another change is being made.
    pub async fn add_member(&self, context: &Context, new: NewMember) -> Result<Answer<ClusterMember>, Failure> {
        name_fits(&new.name)?;
        let member = Member { name: new.name, peer_url: new.peer_url, client_url: new.client_url, incarnation: 0 };
        self.changed(Change::Add { id: new.id, member }, context.timeout).await
    }

    /// # Errors
    /// If there is no such member, its new name is taken, or another change is being made.
    pub async fn patch_member(
        &self,
        context: &Context,
        id_or_name: &str,
        patch: MemberPatch,
    ) -> Result<Answer<ClusterMember>, Failure> {
        patch.name.as_deref().map_or(Ok(()), name_fits)?;
        let (id, _) = self.named(id_or_name)?;
        let MemberPatch { name, peer_url, client_url } = patch;
        self.changed(Change::Update { id, name, peer_url, client_url }, context.timeout).await
    }

    /// Makes a learner a voter once it is at most `max_lag` entries behind, waiting at most `wait`.
    ///
    /// # Errors
    /// If it stays behind.
    pub async fn promote_member(
        &self,
        id_or_name: &str,
        wait: Duration,
        max_lag: u64,
    ) -> Result<Answer<ClusterMember>, Failure> {
        let (id, _) = self.named(id_or_name)?;
        self.changed(Change::Promote { id, max_lag, wait_ms: super::millis(wait) }, wait + CHANGE).await
    }

    /// # Errors
    /// If too few of the others are in reach, unless forced.
    pub async fn remove_member(
        &self,
        context: &Context,
        id_or_name: &str,
        force: bool,
    ) -> Result<Answer<ClusterMember>, Failure> {
        let before = self.cluster_member(id_or_name).await?.body;
        let change = Change::Remove { id: before.id, force };
        self.inner.parts.consensus.change(change, context.timeout).await?;
        Ok(self.answer(self.header(), before, false))
    }

    /// A new member takes the place of a voter: added as a learner if it was not yet, waited for, and
    /// swapped in one change.
    ///
    /// # Errors
    /// As for adding, promoting and removing.
    pub async fn replace_member(
        &self,
        context: &Context,
        old: &str,
        new: NewMember,
        wait: Duration,
        max_lag: u64,
    ) -> Result<Answer<ClusterMember>, Failure> {
        let (old, _) = self.named(old)?;
        let id = match self.inner.parts.consensus.find_member(&new.name) {
            Some((id, known)) if known.peer_url == new.peer_url => id,
            _ => self.add_member(context, new).await?.body.id,
        };
        self.changed(Change::Replace { old, new: id, max_lag, wait_ms: super::millis(wait) }, wait + CHANGE).await
    }

    /// Moves leadership to a voter, or to the one that is furthest; gives its name.
    ///
    /// # Errors
    /// If it is no voter, or does not take it in time.
    pub async fn move_leader(&self, context: &Context, to: Option<&str>) -> Result<Answer<String>, Failure> {
        let to = to.map(|name| self.named(name)).transpose()?.map(|(id, _)| id);
        let id = self.inner.parts.consensus.change(Change::Lead { to }, context.timeout).await?;
        let name = self.inner.parts.consensus.member(id).map_or_else(|| format!("{id:x}"), |member| member.name);
        Ok(self.answer(self.header(), name, false))
    }

    async fn changed(&self, change: Change, timeout: Duration) -> Result<Answer<ClusterMember>, Failure> {
        let consensus = &self.inner.parts.consensus;
        let id = consensus.change(change, timeout).await?;
        // The change was made by the leader; this member hears of it a moment later.
        let known = async {
            loop {
                if let Some(member) = self.cluster_members().await.into_iter().find(|member| member.id == id) {
                    return member;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(CHANGE, known).await {
            Ok(member) => Ok(self.answer(self.header(), member, false)),
            Err(_) => Err(Failure::Unavailable { why: Why::Timeout, outcome: Outcome::Unknown }),
        }
    }
}

fn name_fits(name: &str) -> Result<(), Failure> {
    if (1..=limits::MEMBER_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    let problem = format!("expected 1 to {} bytes without control characters", limits::MEMBER_NAME_BYTES_MAX);
    Err(Rejection::Invalid { field: "name".to_owned(), problem }.into())
}

fn described(
    id: u64,
    member: Member,
    voter: bool,
    leader: Option<u64>,
    state: Option<&MemberState>,
    about: Option<&About>,
) -> ClusterMember {
    let standing = match about {
        None => MemberStanding::Unreachable,
        Some(about) if about.leads => MemberStanding::Leader,
        Some(_) if leader.is_some() => MemberStanding::Follower,
        Some(_) => MemberStanding::Candidate,
    };
    ClusterMember {
        id,
        name: member.name,
        role: if voter { MemberRole::Voter } else { MemberRole::Learner },
        standing,
        peer_url: member.peer_url,
        client_url: member.client_url,
        version: about.map(|about| about.version.clone()),
        applied_index: about.and_then(|about| about.applied),
        match_index: state.and_then(|state| state.matched),
        lag_entries: state.map(|state| state.lag),
        last_contact_ms: state.and_then(|state| state.last_contact_ms),
        db_bytes: about.map(|about| about.db_bytes),
    }
}
