//! Transactions as JSON: the documented example, each form of a compare, and what is refused.

use super::*;
use crate::api::problem::Around;
use crate::model::RangeReply;

const TIMES: Times<'static> = Times { ttl_ms: &|_| None, expires_at: &|_| None };

fn decoded(text: &str) -> Request {
    decode(text.as_bytes(), &|| 77).unwrap_or_else(|problem| panic!("{text}: {}", json(&problem)))
}

fn json(problem: &Problem) -> String {
    String::from_utf8(problem.to_json(Around { mutates: true, revision: None, request_id: "", pretty: false })).unwrap()
}

fn refusal(text: &str) -> String {
    match decode(text.as_bytes(), &|| 77) {
        Ok(request) => panic!("{text} was accepted: {request:?}"),
        Err(problem) => json(&problem),
    }
}

fn one_compare(text: &str) -> (CompareOp, CompareTarget) {
    let mut request = decoded(&format!(r#"{{"if":[{{"key":"a",{text}}}]}}"#));
    let compare = request.txn.compares.remove(0);
    assert_eq!(compare.range, KeyRange::key("a"));
    (compare.op, compare.target)
}

#[test]
fn the_documented_transaction_is_understood() {
    let request = decoded(
        r#"{
        "if": [{"key":"stock/42","revision":17},{"key":"orders/9","exists":false},{"key":"flags/open","value":"yes"},
               {"key":"stock/42","version":{"gte":3}},{"prefix":"carts/7/","exists":true}],
        "then": [{"put":{"key":"stock/42","value":"9"}},{"put":{"key":"orders/9","value_json":{"by": "ann"}}},
                 {"add":{"key":"stats/orders","by":1,"max":1000}},{"delete":{"key":"carts/7"}},{"get":{"key":"stats/orders"}}],
        "else": [{"get":{"key":"stock/42"}},{"list":{"prefix":"orders/","limit":10,"keys_only":true}}]
        }"#,
    );
    assert_eq!(request.txn.compares.len(), 5);
    assert_eq!(request.txn.compares[4].range, KeyRange::prefix("carts/7/"));
    let Op::Put(order) = &request.txn.success[1] else { panic!("a put") };
    assert_eq!((&order.value[..], order.content_type.as_deref()), (&br#"{"by": "ann"}"#[..], Some("application/json")));
    assert!(matches!(&request.txn.success[2], Op::Add { by: 1, max: Some(1000), min: None, clamp: false, .. }));
    let Op::Range(list) = &request.txn.failure[1] else { panic!("a list") };
    assert_eq!((list.limit, list.keys_only), (10, true));
    assert_eq!(request.failure, [Shape::Get, Shape::List { values: Values::Omitted, count_only: false }]);
}

#[test]
fn each_compare_has_its_target_and_operator() {
    use CompareOp::*;
    use CompareTarget as T;
    let table = [
        (r#""exists":true"#, (Greater, T::Version(0))),
        (r#""exists":false"#, (Equal, T::Version(0))),
        (r#""value":"x""#, (Equal, T::Value("x".into()))),
        (r#""value":{"ne":"x"}"#, (NotEqual, T::Value("x".into()))),
        (r#""value_base64":"/w==""#, (Equal, T::Value(Bytes::from_static(b"\xff")))),
        (r#""lease":"3f9a""#, (Equal, T::Lease(0x3f9a))),
        (r#""lease":{"ne":"0"}"#, (NotEqual, T::Lease(0))),
        (r#""revision":{"lt":7}"#, (Less, T::ModRevision(7))),
        (r#""create_revision":{"lte":7}"#, (LessOrEqual, T::CreateRevision(7))),
        (r#""version":{"gt":7}"#, (Greater, T::Version(7))),
        (r#""version":{"eq":7}"#, (Equal, T::Version(7))),
    ];
    for (text, expected) in table {
        assert_eq!(one_compare(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let table = [
        (r#"{"iff":[]}"#, r#""suggestion":"if""#),
        (r#"{"if":{}}"#, "`if` is not an array"),
        (r#"{"if":[{"key":"a"}]}"#, "if[0].exists"),
        (r#"{"if":[{"exists":true}]}"#, "if[0].key"),
        (r#"{"if":[{"key":"a","prefix":"b","exists":true}]}"#, "together with a range"),
        (r#"{"if":[{"key":"a","version":1,"value":"b"}]}"#, "compares one thing"),
        (r#"{"if":[{"key":"a","version":{"gtee":1}}]}"#, r#""suggestion":"gte""#),
        (r#"{"if":[{"key":"a","version":{"gt":1,"lt":3}}]}"#, "exactly one of"),
        (r#"{"if":[{"key":"a","version":"1"}]}"#, "if[0].version"),
        (r#"{"if":[{"key":"a","lease":"xyz"}]}"#, "hexadecimal digits"),
        (r#"{"if":[{"key":"a","lease":255}]}"#, "a lease's id as text"),
        (r#"{"if":[{"lock":"deploy"}]}"#, "if[0].token"),
        (r#"{"if":[{"lock":"deploy","token":1,"key":"a"}]}"#, "`key` is not known here"),
        (r#"{"then":[{"put":{"key":"a","value":"1","ttl":"5ms"}}]}"#, "bad-ttl"),
        (r#"{"then":[{"put":{"key":"a","value":"1","ttl":"5s","keep_ttl":true}}]}"#, "give one of"),
        (r#"{"then":[{"add":{"key":"a","lease":"0"}}]}"#, "hexadecimal digits"),
        (r#"{"then":[{"put":{"key":"","value":"1"}}]}"#, "empty-key"),
        (r#"{"then":[{"put":{"key":"a"}}]}"#, "then[0].put.value"),
        (r#"{"then":[{"putt":{}}]}"#, r#""suggestion":"put""#),
        (r#"{"then":[{"put":{"key":"a","value":"1"},"get":{"key":"a"}}]}"#, "exactly one operation"),
        (r#"{"then":[{}]}"#, "exactly one operation"),
        (r#"{"then":[{"txn":{}}]}"#, "do not nest"),
        (r#"{"then":[{"delete":{"prefix":""}}]}"#, "range-required"),
        (r#"{"then":[{"add":{"key":"a","min":2,"max":1}}]}"#, "then[0].add.min"),
        (r#"{"then":[{"list":{"limit":0}}]}"#, "then[0].list.limit"),
        (r#"{"then":[{"put":{"key":"a","value":"1","content_type":"a\nb"}}]}"#, "content_type"),
        (r#"{"then":[]} x"#, "unexpected bytes"),
        (r#"[]"#, "not an object"),
        ("", "unexpected end"),
    ];
    for (text, expected) in table {
        let problem = refusal(text);
        assert!(problem.contains(expected), "{text}: {problem}");
    }
    let many = format!(r#"{{"then":[{}]}}"#, vec![r#"{"get":{"key":"a"}}"#; 129].join(","));
    assert!(refusal(&many).contains("the limit is 128"));
}

#[test]
fn results_read_as_documented() {
    let kv = KeyValue {
        key: "a".into(),
        value: "1".into(),
        value_size: 1,
        content_type: None,
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 0,
    };
    let range = |kvs| OpReply::Range(RangeReply { kvs, count: 1, more: false });
    let results = vec![
        OpReply::Put { key: "a".into(), version: 1, created: true, lease: 0, prev: None },
        OpReply::Delete { deleted: 1, prev: vec![kv.clone()] },
        range(vec![]),
        range(vec![KeyValue { value: Bytes::new(), ..kv }]),
        OpReply::Add { key: "n".into(), value: 2, previous: 1, existed: true, clamped: false, version: 2, lease: 0 },
    ];
    let shapes = [
        Shape::Put,
        Shape::Delete { prev: true },
        Shape::Get,
        Shape::List { values: Values::Omitted, count_only: false },
        Shape::Add,
    ];
    let reply = TxnReply { succeeded: true, failed_if: vec![], revision: 43, results };
    let mut members = Writer::default();
    encode(&mut members, &reply, &shapes, Extent { revision: true, outcome_only: false, times: TIMES }).unwrap();
    let expected = concat!(
        r#""revision":43,"results":[{"put":{"key":"a","revision":43,"version":1,"created":true}},"#,
        r#"{"delete":{"deleted":1,"revision":43,"previous":[{"key":"a","value":"1","create_revision":2,"mod_revision":2,"version":1}]}},"#,
        r#"{"get":null},"#,
        r#"{"list":{"revision":43,"items":[{"key":"a","size":1,"create_revision":2,"mod_revision":2,"version":1}],"count":1,"more":false}},"#,
        r#"{"add":{"key":"n","value":2,"previous":1,"revision":43,"clamped":false}}]"#
    );
    assert_eq!(String::from_utf8(members.into_bytes()).unwrap(), expected);
}

#[test]
fn results_say_how_long_their_keys_stay() {
    let kv = KeyValue {
        key: "a".into(),
        value: "1".into(),
        value_size: 1,
        content_type: None,
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 7,
    };
    let results = vec![
        OpReply::Put { key: "a".into(), version: 1, created: true, lease: 7, prev: None },
        OpReply::Range(RangeReply { kvs: vec![kv], more: false, count: 1 }),
    ];
    let reply = TxnReply { succeeded: true, failed_if: vec![], revision: 43, results };
    let times = Times {
        ttl_ms: &|lease| (lease == 7).then_some(5000),
        expires_at: &|lease| (lease == 7).then(|| "then".to_owned()),
    };
    let mut members = Writer::default();
    encode(&mut members, &reply, &[Shape::Put, Shape::Get], Extent { revision: true, outcome_only: false, times })
        .unwrap();
    let told = String::from_utf8(members.into_bytes()).unwrap();
    assert!(told.contains(r#""lease":"0000000000000007","expires_at":"then""#), "{told}");
    assert!(told.contains(r#""lease":"0000000000000007","ttl_ms":5000"#), "{told}");
}

#[test]
fn a_reply_that_does_not_fit_is_a_fault_and_not_a_guess() {
    let reply = TxnReply { succeeded: true, failed_if: vec![], revision: 1, results: vec![] };
    let encoded = |outcome_only| {
        encode(&mut Writer::default(), &reply, &[Shape::Put], Extent { revision: true, outcome_only, times: TIMES })
    };
    assert!(encoded(false).is_err());
    assert!(encoded(true).is_ok());
}

#[test]
fn puts_and_adds_say_what_becomes_of_the_lease() {
    let lease = |operation: &str| match decoded(&format!(r#"{{"then":[{operation}]}}"#)).txn.success.remove(0) {
        Op::Put(put) => put.lease,
        Op::Add { lease, .. } => lease,
        other => panic!("{other:?}"),
    };
    let put = |said: &str| lease(&format!(r#"{{"put":{{"key":"a","value":"1"{said}}}}}"#));
    let add = |said: &str| lease(&format!(r#"{{"add":{{"key":"a"{said}}}}}"#));
    assert_eq!((put(""), add("")), (LeaseChoice::Detach, LeaseChoice::Keep));
    for said in [&put as &dyn Fn(&str) -> LeaseChoice, &add] {
        assert_eq!(said(r#","ttl":"1501ms""#), LeaseChoice::Implicit { id: 77, ttl_ms: 1600 });
        assert_eq!(said(r#","lease":"ff""#), LeaseChoice::Attach(255));
        assert_eq!(said(r#","keep_ttl":true"#), LeaseChoice::Keep);
        assert_eq!(said(r#","keep_ttl":false"#), LeaseChoice::Detach);
    }
}
