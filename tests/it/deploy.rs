//! `deploy/` against the binary: names, ports, probes and settings that it tells of must exist.

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

const FILES: [(&str, &str); 6] = [
    ("compose", include_str!("../../deploy/compose.yaml")),
    ("kustomization", include_str!("../../deploy/kubernetes/kustomization.yaml")),
    ("services", include_str!("../../deploy/kubernetes/services.yaml")),
    ("statefulset", include_str!("../../deploy/kubernetes/statefulset.yaml")),
    ("disruption", include_str!("../../deploy/kubernetes/disruption.yaml")),
    ("network-policy", include_str!("../../deploy/kubernetes/network-policy.yaml")),
];

fn documents(name: &str) -> Vec<Value> {
    let text = FILES.iter().find(|(known, _)| *known == name).unwrap().1;
    let parse = |part: &str| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{name}: {error}"));
    text.split("\n---\n").map(parse).collect()
}

fn run(arguments: &[&str], environment: &[(String, String)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.args(arguments).env_clear().envs(environment.iter().cloned());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// The settings that these variables make; all of them must be known to the server.
fn settings(environment: &[(String, String)]) -> Value {
    let (fine, said) = run(&["config", "show", "-o", "json"], environment);
    assert!(fine, "{environment:?}: {said}");
    let shown: Value = serde_json::from_str(&said).unwrap();
    let from_env: BTreeSet<String> = shown["settings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|setting| setting["source"] == "env")
        .map(|setting| format!("TENURE_{}", setting["name"].as_str().unwrap().to_uppercase().replace('-', "_")))
        .collect();
    let given: BTreeSet<String> = environment.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(from_env, given, "a variable that the server does not know");
    shown
}

#[test]
fn compose_starts_three_members_with_settings_that_exist() {
    let compose = &documents("compose")[0];
    let services = compose["services"].as_object().unwrap();
    let cluster = compose["x-cluster"]["TENURE_INITIAL_CLUSTER"].as_str().unwrap();
    assert_eq!(services.len(), 3);
    for (name, service) in services {
        assert!(cluster.contains(&format!("{name}=http://{name}:2380")), "{name} is not in {cluster}");
        let own = service["environment"].as_object().unwrap();
        assert_eq!(own["TENURE_NAME"], name.as_str());
        let own = own.iter().filter(|(key, _)| *key != "<<" && *key != "TENURE_INITIAL_CLUSTER");
        let mut environment: Vec<(String, String)> =
            own.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
        environment.push(("TENURE_INITIAL_CLUSTER".to_owned(), cluster.to_owned()));
        settings(&environment);
        let volume = service["volumes"][0].as_str().unwrap();
        assert!(volume.ends_with(":/var/lib/tenure") && service["ports"][0].as_str().unwrap().ends_with(":2379"));
    }
    assert_eq!(compose["x-member"]["healthcheck"]["test"][2], "health");
}

#[test]
fn the_image_runs_the_binary_with_settings_that_exist() {
    let dockerfile = include_str!("../../deploy/Dockerfile");
    let mut environment = Vec::new();
    for word in dockerfile.split_whitespace().filter(|word| word.starts_with("TENURE_")) {
        let (name, value) = word.split_once('=').unwrap();
        environment.push((name.to_owned(), value.to_owned()));
    }
    assert_eq!(environment.len(), 3);
    settings(&environment);
    for line in
        ["USER 65532:65532", "EXPOSE 2379 2380", r#"CMD ["/usr/local/bin/tenure", "health"]"#, r#"CMD ["serve"]"#]
    {
        assert!(dockerfile.contains(line), "{line}");
    }
}

#[test]
fn the_pods_are_found_probed_and_configured_as_the_server_wants() {
    let set = &documents("statefulset")[0];
    assert_eq!((&set["kind"], &set["spec"]["replicas"]), (&"StatefulSet".into(), &3.into()));
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel", "in order, a quorum never starts");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let environment: Vec<(String, String)> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| {
            let value = variable["value"].as_str().unwrap_or("tenure-0").replace("$(TENURE_NAME)", "tenure-0");
            (variable["name"].as_str().unwrap().to_owned(), value)
        })
        .collect();
    settings(&environment);
    let cluster = &environment.iter().find(|(name, _)| name == "TENURE_INITIAL_CLUSTER").unwrap().1;
    for n in 0..3 {
        assert!(cluster.contains(&format!("tenure-{n}=http://tenure-{n}.tenure-peer:2380")), "{cluster}");
    }
    let routes: BTreeSet<&str> = tenure::api::ROUTES.iter().map(|route| route.path).collect();
    for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
        assert_eq!(container[probe]["httpGet"]["path"], path);
        assert_eq!(container[probe]["httpGet"]["port"], "client");
        assert!(routes.contains(path));
    }
    let ports: Vec<_> = container["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["name"].as_str(), port["containerPort"].as_u64()))
        .collect();
    assert_eq!(ports, [(Some("client"), Some(2379)), (Some("peer"), Some(2380))]);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let services = documents("services");
    let headless = services.iter().find(|service| service["metadata"]["name"] == set["spec"]["serviceName"]).unwrap();
    assert_eq!(
        (&headless["spec"]["clusterIP"], &headless["spec"]["publishNotReadyAddresses"]),
        (&"None".into(), &true.into())
    );
    assert!(services.iter().all(|service| &service["spec"]["selector"] == labels));
    let budget = &documents("disruption")[0];
    assert_eq!((&budget["spec"]["maxUnavailable"], &budget["spec"]["selector"]["matchLabels"]), (&1.into(), labels));
    let policy = &documents("network-policy")[0];
    let peers = &policy["spec"]["ingress"][0];
    assert_eq!((&peers["from"][0]["podSelector"]["matchLabels"], &peers["ports"][0]["port"]), (labels, &2380.into()));
    for resource in documents("kustomization")[0]["resources"].as_array().unwrap() {
        let name = resource.as_str().unwrap().trim_end_matches(".yaml");
        assert!(FILES.iter().any(|(known, _)| *known == name), "{name} is not checked here");
    }
}

#[test]
fn the_unit_starts_the_server_with_flags_that_exist() {
    let unit = include_str!("../../deploy/systemd/tenure.service");
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    let mut words = value("ExecStart").split_whitespace();
    assert_eq!((words.next(), words.next()), (Some("/usr/local/bin/tenure"), Some("serve")));
    let flags: Vec<&str> = words.collect();
    let (fine, said) = run(&[&["config", "show"], flags.as_slice()].concat(), &[]);
    assert!(fine, "{said}");
    assert_eq!(value("Type"), "exec", "the server does not notify");
    assert_eq!((value("User"), value("StateDirectory")), ("tenure", "tenure"));
}
