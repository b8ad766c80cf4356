//! Changes of users, roles and tokens: what they mean is the tables' affair, when they count is decided here.

use super::super::Stop;
use super::super::root::AUTH_FEATURE_LEVEL;
use super::super::writer::Machine;
use crate::model::{AuthCommand, Rejection, Reply};

impl Machine {
    pub(super) fn change_auth(&mut self, command: &AuthCommand) -> Result<Reply, Stop> {
        let numbers = self.root.numbers;
        if numbers.feature_level < AUTH_FEATURE_LEVEL {
            let problem = format!("users and roles need level {AUTH_FEATURE_LEVEL}, all members of a newer release");
            return Err(Rejection::Invalid { field: "feature_level".into(), problem }.into());
        }
        let root = &mut self.root;
        root.auth.change(command, numbers.now_ms, &mut root.sum).map_err(Rejection::from)?;
        Ok(Reply::Auth { auth_revision: root.auth.revision(), revision: numbers.revision })
    }
}
