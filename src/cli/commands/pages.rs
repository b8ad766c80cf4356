//! A listing page by page, all of it at the first page's revision.

use crate::cli::exit::CliError;
use crate::cli::session::Session;
use crate::client::{BytesForm, Entry, Request};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    pub(super) revision: i64,
    pub(super) items: Vec<Entry>,
    prefixes: Vec<String>,
    prefixes_base64: Vec<String>,
    pub(super) count: Option<u64>,
    more: bool,
    next: Option<String>,
}

impl Page {
    /// The groups that a delimiter made.
    pub(super) fn groups(&self) -> impl Iterator<Item = Vec<u8>> {
        let encoded = |text| BytesForm { text: None, base64: Some(text) }.bytes();
        let plain = self.prefixes.iter().map(|group| group.as_bytes().to_vec());
        plain.chain(self.prefixes_base64.iter().map(move |group| encoded(group.as_str())))
    }
}

#[derive(Debug)]
pub(super) struct Pager {
    request: Request,
    ended: bool,
}

impl Pager {
    pub(super) fn new(request: Request) -> Self {
        Self { request, ended: false }
    }

    pub(super) async fn next(&mut self, session: &mut Session) -> Result<Option<Page>, CliError> {
        if self.ended {
            return Ok(None);
        }
        let page: Page = session.send(&self.request).await?.json()?;
        match &page.next {
            Some(cursor) if page.more => self.request = self.request.clone().with("cursor", cursor),
            _ => self.ended = true,
        }
        Ok(Some(page))
    }
}
