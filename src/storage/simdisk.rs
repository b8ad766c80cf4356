//! A disk in memory that keeps what was synced apart from what was only written.
//!
//! `crash` forgets un-synced pages, creations, renames and removals, all of them or a chosen subset.
//! A failed sync leaves its pages readable but never on the disk, as Linux does. Every mutating
//! operation is counted, so that a test can cut the power after each one or let any of them fail.
//! Directories themselves are durable at once. It must not know what the files mean.

use super::disk::{Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What of the un-synced state survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    Nothing,
    Everything,
    /// Each un-synced page, length and directory change by the toss of a coin.
    Seeded(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// An I/O error; the operation has no effect.
    Eio,
    /// No space left; the operation has no effect.
    Enospc,
    /// A write stops after this many bytes, with an error. Other operations fail as with `Eio`.
    ShortWrite(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Rename,
    Remove,
    SyncDir,
    Write,
    SyncData,
    Allocate,
    SetLen,
}

/// A cheap handle; clones share the disk. `fork` copies it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    page_bytes: usize,
    capacity: Option<u64>,
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<u64, Node>,
    next_node: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    changes: Vec<Change>,
    trace: Vec<(Operation, PathBuf)>,
    cut_after: Option<u64>,
    injected: BTreeMap<u64, Injected>,
    read_error: bool,
    /// Raised by every crash: handles from before it are dead.
    epoch: u64,
}

type Pages = BTreeMap<u64, Box<[u8]>>;

#[derive(Debug, Clone, Default)]
struct Node {
    pages: Pages,
    len: u64,
    synced_pages: Pages,
    synced_len: u64,
    dirty: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
enum Change {
    Link(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    node: u64,
    path: PathBuf,
    epoch: u64,
}

/// splitmix64: enough for coins that a seed replays.
fn next_coin(seed: &mut u64) -> bool {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) & 1 == 1
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "injected: no space left")
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    #[must_use]
    pub fn new() -> Self {
        Self::with_page_bytes(4096)
    }

    /// Un-synced data survives in units of `page_bytes`: 4096, or 512 for torn pages.
    #[must_use]
    pub fn with_page_bytes(page_bytes: usize) -> Self {
        let state = State {
            page_bytes: page_bytes.max(1),
            capacity: None,
            dirs: BTreeSet::new(),
            files: BTreeMap::new(),
            next_node: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            trace: Vec::new(),
            cut_after: None,
            injected: BTreeMap::new(),
            read_error: false,
            epoch: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// An independent copy, un-synced state included.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state.lock().clone())) }
    }

    /// Power loss and restart: open handles die, faults are cleared, and of the un-synced state only
    /// the survivors are left, now as durable as the rest.
    pub fn crash(&self, survivors: Survivors) {
        self.state.lock().crash(survivors);
    }

    /// The process is killed and restarted, the machine keeps running: open handles die, un-synced
    /// state stays readable and un-synced.
    pub fn restart_process(&self) {
        self.state.lock().reset_faults();
    }

    /// Mutating operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state.lock().trace.len() as u64
    }

    /// What each operation so far was, in order.
    #[must_use]
    pub fn trace(&self) -> Vec<(Operation, PathBuf)> {
        self.state.lock().trace.clone()
    }

    /// The first `count` operations succeed, all later ones fail without effect, until a crash.
    pub fn cut_after(&self, count: u64) {
        self.state.lock().cut_after = Some(count);
    }

    /// The operation with this number (from 0) fails.
    pub fn inject(&self, operation: u64, injected: Injected) {
        self.state.lock().injected.insert(operation, injected);
    }

    /// All reads fail, or work again.
    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().read_error = fail;
    }

    /// Total space; growth beyond it fails as on a full disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// A file's bytes as a reader sees them now.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let node = state.files.get(state.names.get(path)?)?;
        let mut bytes = vec![0; usize::try_from(node.len).ok()?];
        node.read(&mut bytes, 0, state.page_bytes);
        Some(bytes)
    }

    /// Puts a file in place as if it had always been there: written and synced.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state.lock();
        let page_bytes = state.page_bytes;
        let mut node = Node::default();
        node.write(bytes, 0, page_bytes);
        node.sync();
        let id = state.add_node(node);
        state.names.insert(path.to_owned(), id);
        state.durable_names.insert(path.to_owned(), id);
    }
}

impl State {
    fn powered(&self) -> bool {
        self.cut_after.is_none_or(|count| (self.trace.len() as u64) < count)
    }

    /// Counts an operation; an error if it must fail, or how much of a write to let through.
    fn begin(&mut self, operation: Operation, path: &Path) -> io::Result<Option<usize>> {
        let number = self.trace.len() as u64;
        if !self.powered() {
            return Err(io::Error::other("the power is off"));
        }
        self.trace.push((operation, path.to_owned()));
        match self.injected.get(&number) {
            None => Ok(None),
            Some(Injected::Enospc) => Err(no_space()),
            Some(Injected::ShortWrite(bytes)) if operation == Operation::Write => Ok(Some(*bytes)),
            Some(Injected::Eio | Injected::ShortWrite(_)) => Err(io::Error::other("injected: I/O error")),
        }
    }

    fn add_node(&mut self, node: Node) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        self.files.insert(id, node);
        id
    }

    fn used(&self) -> u64 {
        let page = self.page_bytes as u64;
        self.names.values().filter_map(|id| self.files.get(id)).map(|node| node.len.div_ceil(page) * page).sum()
    }

    fn check_growth(&self, node: u64, len: u64) -> io::Result<()> {
        let now = self.files.get(&node).map_or(0, |node| node.len);
        match self.capacity {
            Some(capacity) if len > now && self.used() + (len - now) > capacity => Err(no_space()),
            _ => Ok(()),
        }
    }

    fn reset_faults(&mut self) {
        self.epoch += 1;
        self.cut_after = None;
        self.injected.clear();
        self.read_error = false;
    }

    fn crash(&mut self, survivors: Survivors) {
        let mut seed = if let Survivors::Seeded(seed) = survivors { seed } else { 0 };
        let mut survives = || match survivors {
            Survivors::Nothing => false,
            Survivors::Everything => true,
            Survivors::Seeded(_) => next_coin(&mut seed),
        };
        for change in std::mem::take(&mut self.changes) {
            if survives() {
                change.apply(&mut self.durable_names);
            }
        }
        for node in self.files.values_mut() {
            node.crash(&mut survives);
        }
        self.names = self.durable_names.clone();
        let live: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| live.contains(id));
        self.reset_faults();
    }

    fn check_dir(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() && !self.dirs.contains(dir) => Err(not_found(dir)),
            _ => Ok(()),
        }
    }
}

impl Change {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path) => path.parent(),
        }
    }

    /// A change whose own condition was lost before it has no effect.
    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Link(path, node) => {
                names.insert(path, node);
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(&from) {
                    names.insert(to, node);
                }
            }
            Self::Unlink(path) => {
                names.remove(&path);
            }
        }
    }
}

impl Node {
    fn read(&self, buf: &mut [u8], offset: u64, page_bytes: usize) -> usize {
        let readable = usize::try_from(self.len.saturating_sub(offset)).map_or(buf.len(), |left| left.min(buf.len()));
        let mut done = 0;
        while done < readable {
            let (page, within) = split(offset + done as u64, page_bytes);
            let step = (page_bytes - within).min(readable - done);
            let target = &mut buf[done..done + step];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + step]),
                None => target.fill(0),
            }
            done += step;
        }
        readable
    }

    fn write(&mut self, buf: &[u8], offset: u64, page_bytes: usize) {
        let mut done = 0;
        while done < buf.len() {
            let (page, within) = split(offset + done as u64, page_bytes);
            let step = (page_bytes - within).min(buf.len() - done);
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; page_bytes].into());
            bytes[within..within + step].copy_from_slice(&buf[done..done + step]);
            self.dirty.insert(page);
            done += step;
        }
        self.len = self.len.max(offset + buf.len() as u64);
    }

    fn set_len(&mut self, len: u64, page_bytes: usize) {
        if len < self.len {
            let (last, within) = split(len, page_bytes);
            self.pages.retain(|page, _| *page <= last);
            if let Some(bytes) = self.pages.get_mut(&last) {
                bytes[within..].fill(0);
                self.dirty.insert(last);
            }
        }
        self.len = len;
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            if let Some(bytes) = self.pages.get(&page) {
                self.synced_pages.insert(page, bytes.clone());
            }
        }
        // Pages cut off by a shorter length must not come back when the file grows again.
        let kept = &self.pages;
        self.synced_pages.retain(|page, _| kept.contains_key(page));
        self.synced_len = self.len;
    }

    fn crash(&mut self, survives: &mut dyn FnMut() -> bool) {
        for page in std::mem::take(&mut self.dirty) {
            if survives()
                && let Some(bytes) = self.pages.get(&page)
            {
                self.synced_pages.insert(page, bytes.clone());
            }
        }
        if self.len != self.synced_len && survives() {
            self.synced_len = self.len;
        }
        self.pages = self.synced_pages.clone();
        self.len = self.synced_len;
    }
}

fn split(offset: u64, page_bytes: usize) -> (u64, usize) {
    let page_bytes = page_bytes as u64;
    (offset / page_bytes, usize::try_from(offset % page_bytes).unwrap_or(0))
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_dir(path)?;
        if state.names.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
        }
        state.begin(Operation::Create, path)?;
        let node = state.add_node(Node::default());
        state.names.insert(path.to_owned(), node);
        state.changes.push(Change::Link(path.to_owned(), node));
        Ok(Arc::new(SimFile { state: self.state.clone(), node, path: path.to_owned(), epoch: state.epoch }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state.lock();
        let node = *state.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(Arc::new(SimFile { state: self.state.clone(), node, path: path.to_owned(), epoch: state.epoch }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> = inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in dir.ancestors() {
            state.dirs.insert(ancestor.to_owned());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_dir(to)?;
        if !state.names.contains_key(from) {
            return Err(not_found(from));
        }
        state.begin(Operation::Rename, to)?;
        let change = Change::Rename(from.to_owned(), to.to_owned());
        change.clone().apply(&mut state.names);
        state.changes.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.names.contains_key(path) {
            return Err(not_found(path));
        }
        state.begin(Operation::Remove, path)?;
        state.names.remove(path);
        state.changes.push(Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(Operation::SyncDir, dir)?;
        let changes = std::mem::take(&mut state.changes).into_iter();
        let (synced, left): (Vec<Change>, Vec<Change>) = changes.partition(|change| change.dir() == Some(dir));
        state.changes = left;
        for change in synced {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity.map_or(u64::MAX >> 1, |capacity| capacity.saturating_sub(state.used())))
    }
}

impl SimFile {
    fn alive(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.epoch == self.epoch { Ok(state) } else { Err(io::Error::other("the machine was restarted")) }
    }

    fn node<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Node> {
        state.files.get_mut(&self.node).ok_or_else(|| not_found(&self.path))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.alive()?;
        if state.read_error {
            return Err(io::Error::other("injected: read error"));
        }
        let page_bytes = state.page_bytes;
        Ok(self.node(&mut state)?.read(buf, offset, page_bytes))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        let short = state.begin(Operation::Write, &self.path)?;
        state.check_growth(self.node, offset + buf.len() as u64)?;
        let page_bytes = state.page_bytes;
        let node = self.node(&mut state)?;
        match short {
            None => {
                node.write(buf, offset, page_bytes);
                Ok(())
            }
            Some(bytes) => {
                node.write(&buf[..bytes.min(buf.len())], offset, page_bytes);
                Err(io::Error::other("injected: short write"))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.alive()?;
        let power_is_on = state.powered();
        let begun = state.begin(Operation::SyncData, &self.path);
        let node = self.node(&mut state)?;
        match begun {
            Ok(_) => node.sync(),
            // The kernel drops the pages' dirty mark: a later sync would find nothing to do.
            Err(_) if power_is_on => node.dirty.clear(),
            Err(_) => {}
        }
        begun.map(|_| ())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        state.begin(Operation::Allocate, &self.path)?;
        state.check_growth(self.node, len)?;
        let node = self.node(&mut state)?;
        node.len = node.len.max(len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        state.begin(Operation::SetLen, &self.path)?;
        state.check_growth(self.node, len)?;
        let page_bytes = state.page_bytes;
        self.node(&mut state)?.set_len(len, page_bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.alive()?;
        Ok(self.node(&mut state)?.len)
    }
}

#[cfg(test)]
#[path = "simdisk/tests.rs"]
mod tests;
