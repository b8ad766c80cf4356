//! Every key as it was at one revision, page by page, and the writes that both passes and changes come to.

use super::{Halt, Run, of_source, of_target, patiently};
use crate::cli::exit::CliError;
use crate::cli::progress::Progress;
use crate::client::etcd::{EtcdError, Write};
use bytes::Bytes;
use std::collections::BTreeSet;

/// A page is read whole into memory: about so many bytes of it are aimed at.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_KEYS_FIRST: i64 = 100;
const PAGE_KEYS_MAX: i64 = 10_000;
/// What a transaction may have; etcd's limits are 128 operations and 1.5 MiB.
pub(super) const TXN_WRITES_MAX: usize = 100;
pub(super) const TXN_BYTES_MAX: usize = 1 << 20;
/// A lease that ends again and again just when it is needed.
const LEASE_TRIES_MAX: u32 = 5;

impl Run {
    /// Copies everything, users and roles first, and answers as of which revision.
    pub(super) async fn copy(&mut self) -> Result<i64, Halt> {
        self.copy_accounts().await?;
        self.take_leases().await?;
        let (mut start, mut revision, mut limit) = (Bytes::from_static(b"\0"), 0, PAGE_KEYS_FIRST);
        let mut progress: Option<Progress> = None;
        loop {
            let all = || (start.clone(), None);
            let page = patiently!(self.clock, self.source, of_source, self.source.page(all(), revision, limit, false))?;
            let page = page.map_err(|error| self.read_failed(error))?;
            if revision == 0 {
                revision = page.revision;
            }
            let bar = progress.get_or_insert_with(|| Progress::of("copying", "keys", page.count));
            let end = page.kvs.last().filter(|_| page.more).map(|kv| behind(&kv.key));
            let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            if self.sweep {
                self.sweep_between(start.clone(), end.clone(), page.kvs.iter().map(|kv| kv.key.clone())).await?;
            }
            let count = page.kvs.len();
            let mut writes = Vec::with_capacity(count.min(TXN_WRITES_MAX));
            for kv in page.kvs {
                let put = Write::Put { key: kv.key, value: kv.value, lease: kv.lease };
                self.gather(&mut writes, put).await?;
            }
            self.write(writes).await?;
            self.copied += u64::try_from(count).unwrap_or_default();
            bar.add(count);
            self.renew_leases().await?;
            let Some(end) = end else { return Ok(revision) };
            start = end;
            limit = if bytes > PAGE_BYTES { limit / 2 } else { limit * 2 }.clamp(1, PAGE_KEYS_MAX);
        }
    }

    pub(super) fn read_failed(&self, error: EtcdError) -> Halt {
        match error {
            EtcdError::Compacted { .. } => Halt::Again("the etcd has compacted what was to be read next".to_owned()),
            error => of_source(error).into(),
        }
    }

    /// Deletes what is here and not among the keys that are there.
    async fn sweep_between(
        &mut self,
        mut start: Bytes,
        end: Option<Bytes>,
        there: impl Iterator<Item = Bytes>,
    ) -> Result<(), Halt> {
        let there: BTreeSet<Bytes> = there.collect();
        loop {
            let range = || (start.clone(), end.clone());
            let page = patiently!(self.clock, self.target, of_target, self.target.page(range(), 0, 1_000, true))?;
            let page = page.map_err(of_target)?;
            let next = page.kvs.last().filter(|_| page.more).map(|kv| behind(&kv.key));
            let mut writes = Vec::new();
            for kv in page.kvs.into_iter().filter(|kv| !there.contains(&kv.key)) {
                self.gather(&mut writes, Write::Delete { key: kv.key }).await?;
            }
            self.write(writes).await?;
            let Some(next) = next else { return Ok(()) };
            start = next;
        }
    }

    /// Adds a write to those that are to go together, or lets these go first.
    pub(super) async fn gather(&mut self, writes: &mut Vec<Write>, write: Write) -> Result<(), Halt> {
        let bytes: usize = writes.iter().map(Write::bytes).sum();
        let again = writes.iter().any(|known| known.key() == write.key());
        if again || writes.len() >= TXN_WRITES_MAX || bytes + write.bytes() > TXN_BYTES_MAX {
            self.write(std::mem::take(writes)).await?;
        }
        writes.push(write);
        Ok(())
    }

    /// Writes here what was read there, with the leases that it hangs on.
    pub(super) async fn write(&mut self, mut writes: Vec<Write>) -> Result<(), Halt> {
        if writes.is_empty() {
            return Ok(());
        }
        for _ in 0..LEASE_TRIES_MAX {
            for write in &mut writes {
                if let Write::Put { lease, .. } = write
                    && *lease != 0
                    && !self.take_lease(*lease).await?
                {
                    // It has ended there, so that the key's deletion is among the changes to come.
                    *lease = 0;
                }
            }
            let sent = patiently!(self.clock, self.target, of_target, self.target.write(writes.clone()))?;
            match sent {
                Ok(_) => return Ok(()),
                Err(EtcdError::LeaseNotFound { .. }) => self.drop_leases(&writes).await?,
                Err(EtcdError::Refused { endpoint, message }) => {
                    let largest = writes.iter().max_by_key(|write| write.bytes());
                    let of = largest.map(|write| {
                        format!(" (the largest of these keys, with {} bytes: {})", write.bytes(), shown(write.key()))
                    });
                    let message = format!("{message}{}", of.unwrap_or_default());
                    return Err(of_target(EtcdError::Refused { endpoint, message }).into());
                }
                Err(error) => return Err(of_target(error).into()),
            }
        }
        Err(CliError::other("leases end faster than they can be copied").into())
    }
}

fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// The key right behind this one.
fn behind(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}
