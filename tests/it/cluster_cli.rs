//! `tenure member` and `tenure leader` against real members: what they print, change and refuse.

use crate::support::members::{Cluster, Outcome};
use serde_json::Value;
use std::process::Command;

struct Ran {
    code: i32,
    out: String,
    error: String,
}

/// Runs the binary against these members.
fn tenure(cluster: &Cluster, members: &[usize], arguments: &[&str]) -> Ran {
    let endpoints: Vec<String> = members.iter().map(|&member| cluster.client_address(member)).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.env_clear().args(["--endpoints", &endpoints.join(",")]).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), error: text(&output.stderr) }
}

impl Ran {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.error);
        self
    }

    #[track_caller]
    fn prints(self, line: &str) {
        assert_eq!((self.code, self.out.trim_end()), (0, line), "{}", self.error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_listed_and_leadership_is_shown_and_moved() {
    let mut cluster = Cluster::start(3, &[]).await;
    let run = |arguments: &[&str]| tenure(&cluster, &[0, 1, 2], arguments);
    for verb in ["ls", "list"] {
        let table = run(&["member", verb]).exits(0).out;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "ID", "ROLE", "STATE", "LAG", "PEER", "CLIENT"], "{table}");
        let mut names: Vec<&str> = rows[1..].iter().map(|row| row[0]).collect();
        names.sort_unstable();
        assert_eq!(names, ["n1", "n2", "n3"], "{table}");
        assert!(rows[1..].iter().all(|row| row[2] == "voter"), "{table}");
        assert_eq!(rows[1..].iter().filter(|row| row[3] == "leader").count(), 1, "{table}");
        assert!(table.contains(&cluster.peer_url(2)) && table.contains(&cluster.client_address(2)), "{table}");
    }
    let document: Value = serde_json::from_str(&run(&["-o", "json", "member", "ls"]).exits(0).out).unwrap();
    assert_eq!(document["members"].as_array().unwrap().len(), 3, "{document}");
    let lines = run(&["-o", "ndjson", "member", "ls"]).exits(0).out;
    let each = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(each.filter(|member| member["role"] == "voter").count(), 3, "{lines}");

    for to in ["n2", "n3", "n1"] {
        run(&["leader", "move", to]).prints(&format!("{to} leads"));
        run(&["leader"]).prints(to);
        run(&["leader", "show"]).prints(to);
    }
    let shown: Value = serde_json::from_str(&run(&["-o", "json", "leader"]).exits(0).out).unwrap();
    assert_eq!((&shown["leader"], shown["term"].is_u64()), (&"n1".into(), true), "{shown}");
    let anyone = run(&["leader", "move"]).exits(0).out;
    assert!(["n2 leads\n", "n3 leads\n"].contains(&anyone.as_str()), "{anyone}");
    let refused = run(&["leader", "move", "n9"]).exits(3);
    assert!(refused.error.contains("n9") && refused.out.is_empty(), "{}", refused.error);
    let curl = run(&["--curl", "leader", "move", "n2"]).exits(0).out;
    assert!(curl.starts_with("curl -X POST") && curl.contains("/v1/cluster/leader?to=n2"), "{curl}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_promoted_replaced_and_removed() {
    let mut cluster = Cluster::start(1, &[]).await;
    let added = tenure(&cluster, &[0], &["member", "add", "n2", "http://127.0.0.1:9"]).exits(0);
    assert!(added.out.contains("added n2 as a learner"), "{}", added.out);
    let command = format!("--join {}", cluster.peer_url(0));
    assert!(added.out.contains("tenure serve --name n2") && added.out.contains(&command), "{}", added.out);
    assert!(added.error.contains("tenure member promote n2"), "{}", added.error);
    let again = tenure(&cluster, &[0], &["member", "add", "n2", "http://127.0.0.1:9"]);
    assert!(again.code != 0 && again.error.contains("n2 exists already"), "{} {}", again.code, again.error);
    let absent = tenure(&cluster, &[0], &["member", "promote", "n2", "--wait", "60s"]);
    assert!(absent.code != 0 && absent.error.contains("cannot be reached"), "{} {}", absent.code, absent.error);

    // It comes, and is the one that was announced.
    assert_eq!(cluster.join().await, 1);
    tenure(&cluster, &[0], &["member", "promote", "n2", "--wait", "30s"]).prints("n2 votes");
    assert_eq!(cluster.join().await, 2);
    tenure(&cluster, &[1], &["member", "promote", "n3"]).prints("n3 votes");
    assert_eq!(cluster.client(2).put("k", "v").await, Outcome::Done);

    // The first goes, whoever leads; its process ends by itself and says why.
    assert_eq!(cluster.join().await, 3);
    let url = cluster.peer_url(3);
    let replaced = tenure(&cluster, &[1, 2], &["member", "replace", "n1", "n4", &url, "--wait", "30s"]);
    replaced.prints("n4 votes in the place of n1");
    assert_eq!(cluster.ended(0).await, Some(1));
    let why = cluster.log(0);
    assert!(why.contains("was removed from its cluster") && why.contains("--join"), "{why}");

    let leader = tenure(&cluster, &[1, 2, 3], &["leader"]).exits(0).out.trim_end().to_owned();
    let at = leader.trim_start_matches('n').parse::<usize>().unwrap() - 1;
    let rest: Vec<usize> = (1..4).filter(|member| *member != at).collect();
    tenure(&cluster, &rest, &["member", "remove", &leader]).prints(&format!("{leader} is no member any more"));
    assert_eq!(cluster.ended(at).await, Some(1), "the leader's process ends too");
    let gone = tenure(&cluster, &rest, &["member", "remove", &leader]).exits(3);
    assert!(gone.error.contains(&leader), "{}", gone.error);
    let table = tenure(&cluster, &rest, &["member", "ls"]).exits(0).out;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(cluster.client(rest[0]).get("k").await.as_deref(), Some("v"));
    // Of two that vote, the silent one cannot be voted out by the other.
    cluster.kill(rest[1]);
    let last = format!("n{}", rest[0] + 1);
    let lost = tenure(&cluster, &rest[..1], &["--timeout", "3s", "member", "remove", &last]);
    assert!(lost.code != 0 && lost.out.is_empty(), "{}", lost.out);
    cluster.stop().await;
}
