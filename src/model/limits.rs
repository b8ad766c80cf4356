//! Every bound in one place: what it limits and what happens at it.

/// Revisions stay below 2^53, so that JSON readers keep them exact; a later one in a request is refused.
pub const REVISION_MAX: i64 = (1 << 53) - 1;
/// A key's length in bytes over REST; longer is refused (`key-too-long`).
pub const KEY_BYTES_MAX: usize = 4096;
/// A request body (etcd's default); longer is refused (`too-large`).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// Operations, and compares, of one transaction (etcd's default); more are refused.
pub const TXN_OPS_MAX: usize = 128;
/// Names of locks, semaphores and elections; longer ones are refused.
pub const NAME_BYTES_MAX: usize = 256;
/// `wait` on locks, semaphores and elections; longer is refused.
pub const CLAIM_WAIT_MAX_MS: u64 = 600_000;
/// What a candidate says of itself; longer is refused.
pub const ELECTION_VALUE_BYTES_MAX: usize = 4096;
/// Fences around one write; more are refused.
pub const FENCES_MAX: usize = 64;
/// How long an etcd client that names no deadline waits, as etcd has it by default.
pub const TIMEOUT_ETCD_MS: u64 = 7_000;
/// Watches on one etcd stream; more are refused.
pub const WATCHES_PER_STREAM_MAX: usize = 20_000;
/// Answers of one etcd watch stream that its client has not taken yet, and their keys and values (more than that goes
/// alone); its watches wait. As many as watch one key on a stream should fit, so that what it tells them travels together.
pub const WATCH_ANSWERS_AHEAD: usize = 1024;
pub const WATCH_ANSWERS_AHEAD_BYTES: usize = 1 << 20;
/// How deep transactions may nest; deeper is refused.
pub const TXN_DEPTH_MAX: usize = 32;
/// Entries of one list page: asked for by default, and at most.
pub const LIST_PAGE_DEFAULT: u64 = 1000;
pub const LIST_PAGE_MAX: u64 = 10_000;
/// Bytes of keys and values in one list page; the page ends early.
pub const LIST_PAGE_BYTES_MAX: usize = 4 << 20;
/// Entries of one history page: by default, and at most.
pub const HISTORY_PAGE_DEFAULT: u64 = 100;
pub const HISTORY_PAGE_MAX: u64 = 1000;
/// Proposals, and bytes, in one log entry; the batcher starts another entry.
pub const BATCH_PROPOSALS_MAX: usize = 256;
pub const BATCH_BYTES_MAX: usize = 512 << 10;
/// Batches proposed and not yet applied; the batcher waits.
pub const BATCHES_IN_FLIGHT_MAX: usize = 2;
/// Proposals waiting for the batcher; more are refused (`throttled`, not applied).
pub const PROPOSAL_QUEUE_MAX: usize = 16_384;
/// Bytes of requests and answers in flight on one member; more are refused (`throttled`).
pub const ADMISSION_BYTES_DEFAULT: u64 = 256 << 20;
/// Log kept in memory for replication and apply; older entries are read from disk.
pub const LOG_CACHE_BYTES: usize = 64 << 20;
/// A segment of the write-ahead log.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;
/// Log records queued or being written; a further append waits for the disk.
pub const WAL_QUEUE_BYTES_MAX: usize = 32 << 20;
/// One record of the log; a longer one is a fault of the caller.
pub const WAL_RECORD_BYTES_MAX: usize = 64 << 20;
/// How long the log must be idle before its writer marks the end as durable.
pub const WAL_IDLE_MARK_MS: u64 = 200;
/// Newest values kept in memory; others are read from the store.
pub const VALUE_CACHE_BYTES_DEFAULT: u64 = 512 << 20;
/// History written but not yet in the engine; apply waits for the engine.
pub const WRITE_BEHIND_BYTES_MAX: usize = 64 << 20;
/// A block of history aims at this many bytes, below the engine's blob threshold.
pub const BLOCK_BYTES_TARGET: usize = 14 << 10;
/// Blocks of history kept verified in memory, each of at most this size; others are fetched again.
pub const BLOCK_CACHE_BLOCKS: u64 = 256;
pub const BLOCK_CACHE_BLOCK_BYTES_MAX: usize = 2 * BLOCK_BYTES_TARGET;
/// One step of walking through history ends after the revision that reaches this size.
pub const WALK_BYTES_MAX: usize = 4 << 20;
/// One that looks for some keys also ends after the revision at which it has passed so many records, or so much of
/// them: who waits beside it has a turn, and it goes on from there.
pub const WALK_PASSED_RECORDS_MAX: usize = 16_384;
pub const WALK_PASSED_BYTES_MAX: usize = 16 << 20;
/// A block of a snapshot file, and its header's meta; longer ones are neither written nor read.
pub const SNAPSHOT_BLOCK_BYTES_MAX: usize = 16 << 20;
pub const SNAPSHOT_META_BYTES_MAX: usize = 1 << 20;
/// How long an engine call may take before the process ends.
pub const ENGINE_WATCHDOG_S: u64 = 10;
/// The cache of each of the engines under history, of which there are sixteen or so at most. Beside it an
/// engine keeps what it took in until it is full, and the pages of what was read last: once that is more
/// than the cache, the thread that writes has it let go; once it is four times as much, the reader does.
pub const ENGINE_CACHE_BYTES: u64 = 4 << 20;
/// Idempotency records: kept this long, ten minutes by log time a tenth fast, this many, with answers up to this size.
pub const IDEMPOTENCY_KEPT_MS: u64 = 660_000;
pub const IDEMPOTENCY_RECORDS_MAX: usize = 1_000_000;
pub const IDEMPOTENCY_REPLY_BYTES_MAX: usize = 4096;
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Logical bytes of the store; growth is refused (`storage-full`).
pub const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;
/// Share of the quota (in percent) above which automatic compaction shortens its retention.
pub const QUOTA_PRESSURE_PERCENT: u64 = 75;
/// Deadlines of requests: by default and at most.
pub const TIMEOUT_DEFAULT_MS: u64 = 5_000;
pub const TIMEOUT_MAX_MS: u64 = 60_000;
/// `wait` on GET and watch; longer is clamped.
pub const WAIT_MAX_MS: u64 = 600_000;
/// Events a watch stream holds at once; what follows waits in the ring below, then in history.
pub const WATCH_QUEUE_EVENTS_MAX: usize = 1_000;
/// At least one revision is held, whatever its size.
pub const WATCH_QUEUE_BYTES_MAX: usize = 64 << 10;
/// Bytes handed to watch streams and not yet taken by their readers, on one member; a stream that
/// gets no share in time ends with `throttled`, to be resumed.
pub const WATCH_BUFFERED_BYTES_MAX: usize = 256 << 20;
/// Bytes of one page of the listing that a watch begins with.
pub const WATCH_PAGE_BYTES_MAX: usize = 256 << 10;
/// How often a watch stream may say that it is alive.
pub const BOOKMARK_MIN_MS: u64 = 1_000;
pub const BOOKMARK_MAX_MS: u64 = 300_000;
pub const BOOKMARK_DEFAULT_MS: u64 = 5_000;
/// Events of one long-poll answer by default, and at most; its bytes. Whole revisions: the last may pass them.
pub const WATCH_POLL_EVENTS_DEFAULT: u64 = 1_000;
pub const WATCH_POLL_EVENTS_MAX: u64 = 10_000;
pub const WATCH_POLL_BYTES_MAX: usize = 4 << 20;
/// Recent events kept in memory for watchers that lag a little.
pub const WATCH_RING_BYTES_MAX: usize = 32 << 20;
/// Reads of history for lagging watchers at the same time; more wait.
pub const WATCH_CATCH_UPS_MAX: usize = 8;
/// Targets of one watch stream, and streams of one member; more are refused.
pub const WATCH_TARGETS_MAX: usize = 64;
pub const WATCH_STREAMS_MAX: usize = 100_000;
/// Lease TTL: the machine's own minimum, and REST's maximum.
pub const LEASE_TTL_MIN_MS: u64 = 1_000;
pub const LEASE_TTL_MAX_MS: u64 = 365 * 24 * 3_600_000;
/// A lease's name in bytes, and its metadata as JSON text; longer ones are refused.
pub const LEASE_NAME_BYTES_MAX: usize = 256;
pub const LEASE_METADATA_BYTES_MAX: usize = 4096;
/// Renewals that one question to the leader holds.
pub const RENEWALS_TOGETHER_MAX: usize = 4096;
/// Leases, and keys attached to them, that one proposal of the lessor ends or checkpoints; the rest
/// goes into the next. A single lease may have more keys.
pub const LEASE_BATCH_MAX: usize = 1000;
pub const LEASE_BATCH_KEYS_MAX: usize = 4000;
/// Lease changes applied while a new leader's lessor gathers the leases; at more it gathers again.
pub const LEASE_JOURNAL_MAX: usize = 65_536;
/// A declared content type's length in bytes; longer is refused.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// JSON nesting accepted anywhere; deeper is refused. (serde_json's own limit is 128.)
pub const JSON_DEPTH_MAX: usize = 128;
/// Request head: bytes and number of headers; more is answered 431.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
pub const HEADERS_MAX: usize = 100;
/// A request head must arrive within this time, and a body at this rate after the grace.
pub const HEAD_TIMEOUT_S: u64 = 10;
pub const BODY_GRACE_S: u64 = 10;
pub const BODY_RATE_BYTES_PER_S: u64 = 1024;
/// A connection without a request, or whose peer takes nothing of its answer, is closed.
pub const IDLE_TIMEOUT_S: u64 = 300;
pub const STALL_TIMEOUT_S: u64 = 60;
/// The same where the end of the connection gives something up: a held lease, a held claim.
pub const HOLD_TIMEOUT_S: u64 = 15;
/// Connections of one member; beyond, new ones are refused at accept.
pub const CONNECTIONS_MAX: usize = 16_000;
/// Disk space below which growth is refused, and what the log keeps in reserve.
pub const DISK_RESERVE_BYTES_DEFAULT: u64 = 256 << 20;
/// How long shutdown may take before what is left is cut off.
pub const SHUTDOWN_S: u64 = 15;
/// One message between members; a longer one closes its stream.
pub const PEER_MESSAGE_BYTES_MAX: usize = WAL_RECORD_BYTES_MAX + (1 << 20);
/// Calls of one peer over one connection that are answered at a time; what comes meanwhile waits at the caller.
pub const PEER_CALLS_MAX: usize = 256;
/// Entries whose state hash is kept for comparison with other members; older ones are forgotten.
pub const STATE_MARKS_MAX: usize = 4096;
/// Connections of the peer port, three from each peer; beyond, new ones are refused at accept.
pub const PEER_CONNECTIONS_MAX: usize = 256;
/// Different reasons for which strangers at the peer port were refused that the log tells in five minutes; others are
/// refused silently.
pub const PEER_REFUSALS_REMEMBERED: usize = 16;
/// Names of members; longer ones are refused.
pub const MEMBER_NAME_BYTES_MAX: usize = 256;
/// Users, roles, and roles of one user; more are refused.
pub const AUTH_USERS_MAX: usize = 10_000;
pub const AUTH_ROLES_MAX: usize = 10_000;
pub const AUTH_USER_ROLES_MAX: usize = 256;
/// Permissions of one role, and the bytes of their keys; more are refused.
pub const AUTH_ROLE_PERMISSIONS_MAX: usize = 4_096;
pub const AUTH_ROLE_BYTES_MAX: usize = 1 << 20;
/// Names of users and roles; longer ones are refused.
pub const AUTH_NAME_BYTES_MAX: usize = 256;
/// Tokens of one user: another takes the place of the one that would run out first. Of all users: more are refused.
pub const AUTH_USER_TOKENS_MAX: usize = 10_000;
pub const AUTH_TOKENS_MAX: usize = 100_000;
/// A token's TTL: at least and at most.
pub const AUTH_TOKEN_TTL_MIN_S: u64 = 1;
pub const AUTH_TOKEN_TTL_MAX_S: u64 = 30 * 24 * 3600;
/// Used tokens waiting to be renewed on one member, which one proposal takes; more are renewed at their next use.
pub const AUTH_RENEWALS_MAX: usize = 1_024;
/// Passwords being hashed at once on one member, and waiting for it; more are refused (`throttled`).
pub const AUTH_HASHES_AT_ONCE: usize = 1;
pub const AUTH_HASHES_WAITING_MAX: usize = 64;
/// Of these, for one user's password, or for all users that do not exist; more are refused, so that who tries
/// passwords of one leaves room for others.
pub const AUTH_HASHES_OF_ONE_MAX: usize = 16;
/// A password's length in bytes; longer ones are refused.
pub const AUTH_PASSWORD_BYTES_MAX: usize = 1_024;
/// Passwords lately found right on one member, for Basic authentication with every request, and for how
/// long; older ones are hashed again.
pub const AUTH_REMEMBERED_MAX: usize = 1_024;
pub const AUTH_REMEMBERED_S: u64 = 60;
/// Versions that compaction released and a write took out of the index, until the block store is told; beyond
/// that they wait for the trimmer. 24 bytes each.
pub const OUTLIVED_MAX: usize = 1 << 20;
