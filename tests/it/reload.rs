//! SIGHUP: what may change while running does, what may not is named, and a wrong file changes nothing.

use crate::support::{Data, Node, eventually};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tenure::node::config::KEYS;

const WITHIN: Duration = Duration::from_secs(10);

struct Member {
    node: Node,
    file: PathBuf,
    _dir: TempDir,
}

impl Member {
    async fn start(settings: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("tenure.toml");
        std::fs::write(&file, settings).unwrap();
        let node = Node::start_with(&Data::fresh(), &["--config", file.to_str().unwrap()]).await;
        Self { node, file, _dir: dir }
    }

    /// In one step: a file that is being written is an empty one for a moment.
    fn reload(&self, settings: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, settings).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
        self.node.signal_hangup();
    }

    async fn json(&self, path: &str) -> Value {
        reqwest::get(format!("{}{path}", self.node.url())).await.unwrap().json().await.unwrap()
    }

    /// Value and source by name.
    async fn settings(&self) -> BTreeMap<String, (String, String)> {
        let config = self.json("/v1/config").await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let settings = config["settings"].as_array().unwrap().iter();
        settings.map(|one| (text(&one["name"]), (text(&one["value"]), text(&one["source"])))).collect()
    }

    async fn said(&self, words: &[&str]) {
        let said = async || self.node.log().iter().any(|line| words.iter().all(|word| line.contains(word)));
        eventually(&format!("the log says {words:?}"), WITHIN, said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_applies_what_may_change_and_names_what_may_not() {
    let member = Member::start("quota-bytes = \"1GiB\"\n").await;
    assert_eq!(member.settings().await["quota-bytes"], ("1GiB".to_owned(), "file".to_owned()));
    let changed = BTreeMap::from([
        ("quota-bytes", "3GiB"),
        ("auto-compact", "5000"),
        ("admission-bytes", "64MiB"),
        ("disk-reserve-bytes", "1MiB"),
        ("disk-stall-abort", "0"),
        ("log-level", "debug,openraft=error"),
    ]);
    let live: Vec<&str> = KEYS.iter().filter(|key| key.live).map(|key| key.name).collect();
    assert_eq!(live.len(), changed.len(), "each setting that may change has a line here: {live:?}");
    let lines: String = changed.iter().map(|(name, value)| format!("{name} = \"{value}\"\n")).collect();
    member.reload(&format!("{lines}snapshot-bytes = \"32MiB\"\nheartbeat = \"100ms\"\n"));
    member.said(&["settings reloaded"]).await;
    let settings = member.settings().await;
    for name in live {
        assert_eq!(settings[name], (changed[name].to_owned(), "file".to_owned()), "{name}");
    }
    member.said(&["setting changed", "quota-bytes", "1GiB", "3GiB"]).await;
    assert_eq!(member.json("/v1/status").await["quota_bytes"], 3_u64 << 30);
    let level = reqwest::Client::new().put(format!("{}/v1/log-level?level=info", member.node.url()));
    let level: Value = level.send().await.unwrap().json().await.unwrap();
    assert_eq!(level["previous"], "debug,openraft=error");

    member.said(&["only a restart applies it", "snapshot-bytes", "64MiB", "32MiB"]).await;
    assert_eq!(settings["snapshot-bytes"], ("64MiB".to_owned(), "default".to_owned()), "it is not in effect");
    assert_eq!(settings["heartbeat"], ("100ms".to_owned(), "file".to_owned()), "the same, from elsewhere");

    let url = (member.node.url(), "default".to_owned());
    assert_eq!(settings["advertise-client"], url, "the port that was bound");
    assert!(!member.node.log().iter().any(|line| line.contains("advertise-client")), "which did not change");

    // What is gone from the file falls back to its default.
    member.reload("");
    member.said(&["setting changed", "quota-bytes", "3GiB", "2GiB"]).await;
    eventually("the default is in effect", WITHIN, async || {
        member.settings().await["quota-bytes"] == ("2GiB".to_owned(), "default".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_changes_nothing() {
    let member = Member::start("quota-bytes = \"1GiB\"\n").await;
    let before = member.settings().await;
    for (wrong, names) in [
        ("quota-bytes = \"3GiB\"\nlog-level = \"loud\"\n", "log-level"),
        ("quota-bytes = \"3GiB\"\nqouta-bytes = 1\n", "qouta-bytes"),
        ("quota-bytes = \"3GiB\"\nauto-compact = [\n", "unclosed array"),
        ("quota-bytes = \"3GiB\"\nadmission-bytes = \"64KiB\"\n", "admission-bytes"),
    ] {
        member.reload(wrong);
        member.said(&["nothing has changed", names]).await;
        assert_eq!(member.settings().await, before, "{wrong}");
    }
    std::fs::remove_file(&member.file).unwrap();
    member.node.signal_hangup();
    member.said(&["nothing has changed", "No such file"]).await;
    assert_eq!(member.json("/v1/status").await["quota_bytes"], 1_u64 << 30);
    member.reload("quota-bytes = \"3GiB\"\n");
    member.said(&["setting changed", "3GiB"]).await;
}
