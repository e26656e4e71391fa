//! What is to be installed says the same as what reads it: paths, capabilities, names.

use std::{collections::BTreeSet, fs, path::Path};

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands behind a beginning, on each line that has it.
fn after<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    let rest = |line: &'a str| line.trim_start().strip_prefix(beginning);
    text.lines().filter_map(rest).map(str::trim).collect()
}

/// The value of a key in `{key: value, …}` on each line that has the others, too.
fn values<'a>(text: &'a str, key: &str, other: &str) -> BTreeSet<&'a str> {
    let lines = text.lines().filter(|line| line.contains(other));
    lines
        .filter_map(|line| {
            let (_, rest) = line.split_once(&format!("{key}: "))?;
            rest.split([',', '}', ']']).next().map(str::trim)
        })
        .collect()
}

fn capabilities(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
    words.filter_map(|word| word.strip_prefix("CAP_")).map(str::to_owned).collect()
}

/// The capabilities of the README's requirements: those that are needed, and all that are named.
fn of_readme() -> (BTreeSet<String>, BTreeSet<String>) {
    let readme = text("README.md");
    let (_, requirements) = readme.split_once("## Requirements").expect("there are some");
    let (requirements, _) = requirements.split_once("## Install").expect("it is next");
    let (needed, _) = requirements.split_once(". On kernels before").expect("the next sentence");
    (capabilities(needed), capabilities(requirements))
}

#[test]
fn the_unit_has_the_capabilities_that_the_readme_names_and_the_log_of_the_kernel() {
    let unit = text("deploy/tracer-watch.service");
    let [bounds] = after(&unit, "CapabilityBoundingSet=")[..] else { panic!("one line") };
    let mut named = of_readme().1;
    named.insert("SYSLOG".into());
    assert_eq!(capabilities(bounds), named);
}

#[test]
fn the_unit_runs_what_the_package_installs_and_writes_where_the_configuration_says() {
    let unit = text("deploy/tracer-watch.service");
    let package = text("xtask/src/deb.rs");
    for command in after(&unit, "ExecStart") {
        let program = command.split(['=', ' ']).find(|word| word.starts_with('/')).expect("a path");
        assert!(package.contains(&format!("\"{}\"", program.trim_start_matches('/'))), "{program}");
        assert!(command.contains("--config /etc/tracer/watch.toml"), "{command}");
    }
    assert_eq!(after(&unit, "ConditionPathExists="), ["/etc/tracer/watch.toml"]);
    let [state] = after(&unit, "StateDirectory=")[..] else { panic!("one line") };
    let directory = format!("\"/var/lib/{state}\"");
    assert_eq!(after(&text("deploy/watch.toml"), "dir = "), [directory.as_str()]);
    assert!(text("tracer/src/watch/mod.rs").contains(&directory), "it is the default");
    assert!(package.contains("usr/lib/systemd/system/tracer-watch.service"));
}

#[test]
fn the_daemon_set_has_no_more_rights_than_recordings_need() {
    let yaml = text("deploy/kubernetes/daemonset.yaml");
    let added = after(&yaml, "add: [");
    let [added] = added[..] else { panic!("one container") };
    let added = added.trim_end_matches(']').split(',').map(|name| name.trim().to_owned()).collect();
    assert_eq!(of_readme().0, added);
    for line in [
        "drop: [ALL]",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "type: RuntimeDefault",
        "automountServiceAccountToken: false",
        "hostPID: true",
    ] {
        assert_eq!(yaml.lines().filter(|other| other.trim() == line).count(), 1, "{line}");
    }
    let is_said = |word: &str| yaml.lines().any(|line| line.trim() == word);
    assert!(!is_said("privileged: true") && !is_said("hostNetwork: true") && !is_said("hostIPC: true"));
    // All that is the node's is read-only but for the reports.
    let writable: Vec<_> = yaml
        .lines()
        .filter(|line| line.contains("mountPath: ") && !line.contains("readOnly: true"))
        .collect();
    assert!(matches!(writable[..], [line] if line.contains("/var/lib/tracer")), "{writable:?}");
}

#[test]
fn the_daemon_set_mounts_each_volume_where_it_is_read() {
    let yaml = text("deploy/kubernetes/daemonset.yaml");
    let mounted = values(&yaml, "name", "mountPath: ");
    let others = ["config", "token"];
    assert_eq!(mounted, values(&yaml, "- {name", "hostPath: ").into_iter().chain(others).collect());
    let read = ["scanner.rs", "container.rs", "mod.rs"]
        .map(|file| text(&format!("tracer/src/watch/{file}")))
        .concat();
    for place in values(&yaml, "{path", "hostPath: ") {
        assert!(values(&yaml, "mountPath", "- {name").contains(place), "{place} is where the machine has it");
        let place = place.trim_start_matches('/');
        assert!(read.contains(place), "nobody reads {place}");
    }
    let (_, configuration) = yaml.split_once("watch.toml: |").expect("a configuration");
    let (configuration, _) = configuration.split_once("---").expect("its end");
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(Into::into)
            .collect()
    };
    // It is that of other hosts, but for who may ask.
    let mut expected = lines(&text("deploy/watch.toml"));
    let listen = expected.pop().expect("it ends so");
    assert_eq!(listen, "listen = \"127.0.0.1:9497\"");
    expected.push("listen = \"0.0.0.0:9497\"".into());
    let [token] = values(&yaml, "mountPath", "{name: token").into_iter().collect::<Vec<_>>()[..] else {
        panic!("one place")
    };
    expected.push(format!("token-file = \"{token}/token\""));
    assert_eq!(lines(configuration), expected);
}

#[test]
fn prometheus_finds_the_pods_of_the_daemon_set() {
    let yaml = text("deploy/kubernetes/daemonset.yaml");
    let job = text("deploy/prometheus/prometheus-kubernetes.yml");
    let [port] = values(&yaml, "- {name", "containerPort: 9497").into_iter().collect::<Vec<_>>()[..] else {
        panic!("one port")
    };
    let [label] = values(&yaml, "matchLabels: {app", "matchLabels").into_iter().collect::<Vec<_>>()[..]
    else {
        panic!("one label")
    };
    assert_eq!(after(&job, "regex: "), [format!("{label};{port}")]);
    assert_eq!(after(&job, "names: "), ["[tracer]"]);
    assert!(after(&yaml, "namespace: ").iter().all(|namespace| *namespace == "tracer"));
    assert!(yaml.contains("path: /-/ready") && yaml.contains("path: /-/healthy"));
}

#[test]
fn the_image_has_what_the_archive_has() {
    let archive = text("xtask/src/dist.rs");
    let copied = text("deploy/Containerfile");
    for line in after(&copied, "COPY ") {
        let (file, place) = line.split_once(' ').expect("from and to");
        assert!(
            archive.contains(&format!("\"{file}\"")) || archive.contains(&format!("/{file}\"")),
            "{file}"
        );
        assert!(
            text("xtask/src/deb.rs").contains(place.trim_start_matches('/')),
            "{place} is where the package has it"
        );
    }
    assert!(copied.contains("ENTRYPOINT [\"/usr/bin/tracer\"]"));
}
