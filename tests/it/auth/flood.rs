//! More logins at once than a member hashes passwords for: some wait, the others are told to come again, and who is
//! known already is not disturbed.

use super::{Door, Who, node};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

/// Several times what may wait.
const LOGINS: usize = 300;

/// What a flood of etcd's logins was answered: those told that the password is wrong, and those told to come again.
async fn logins(door: &Door, name: &'static str) -> (usize, usize) {
    let answers = join_all((0..LOGINS).map(|n| async move {
        let body = json!({"name": name, "password": format!("wrong {n}")});
        door.ask(&Who::Nobody, "POST", "/v3/auth/authenticate", &body.to_string()).await
    }))
    .await;
    let (mut wrong, mut again) = (0, 0);
    for answer in answers {
        let status = answer.status().as_u16();
        let error: Value = answer.json().await.unwrap();
        match (status, error["code"].as_i64()) {
            (400, Some(3)) => wrong += 1,
            (429, Some(8)) => {
                assert_eq!(error["message"], "etcdserver: too many requests");
                again += 1;
            }
            other => panic!("{other:?} {error}"),
        }
    }
    (wrong, again)
}

/// The same with a password in each request of REST.
async fn requests(door: &Door) -> (usize, usize) {
    let answers = join_all((0..LOGINS).map(|_| door.ask(&Who::Basic("ann", "wrong"), "PUT", "/v1/kv/a", "1"))).await;
    let (mut wrong, mut again) = (0, 0);
    for answer in answers {
        let (status, after) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["applied"], "no", "{problem}");
        match (status, problem["code"].as_str()) {
            (401, Some("unauthenticated")) => wrong += 1,
            (429, Some("throttled")) => {
                assert!(after && problem["retryable"] == true, "{problem}");
                again += 1;
            }
            other => panic!("{other:?} {problem}"),
        }
    }
    (wrong, again)
}

#[tokio::test]
async fn a_flood_of_logins_is_bounded_and_disturbs_nobody_who_is_known() {
    let (_node, door) = node(&[]).await;
    let root = door.secured().await;
    for (name, password) in [("ann", "annpw"), ("bob", "bobpw"), ("eve", "evepw")] {
        door.add_user(&root, name, password, None).await;
    }
    // From now on this password is known, and not hashed for each request.
    let bob = Who::Basic("bob", "bobpw");
    assert_eq!(door.status(&bob, "GET", "/v1/status", "").await, 200);
    for flood in 0..3 {
        let calm = async {
            loop {
                for who in [&bob, &root] {
                    assert_eq!(door.status(who, "GET", "/v1/status", "").await, 200, "{who:?}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Another user logs in for the first time meanwhile.
        let other = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            door.token("eve", "evepw").await
        };
        let flooding = async {
            let flooded = async {
                match flood {
                    0 => logins(&door, "ann").await,
                    1 => logins(&door, "who is not there").await,
                    _ => requests(&door).await,
                }
            };
            tokio::join!(flooded, other).0
        };
        let (wrong, again) = tokio::select! {
            never = calm => never,
            flooded = flooding => flooded,
        };
        assert_eq!(wrong + again, LOGINS);
        assert!(wrong > 0 && again > LOGINS / 2, "{flood}: {wrong} hashed, {again} refused");
    }
    // And afterwards the right password counts again.
    door.token("ann", "annpw").await;
}
