//! Which container or service a control group is, by its path, and what people call it.
//!
//! | runtime | the group's directory |
//! |---|---|
//! | Docker | `docker/ID`, `docker-ID.scope` |
//! | containerd (Kubernetes) | `cri-containerd-ID.scope`, `kubepods/burstable/podUID/ID` |
//! | CRI-O | `crio-ID.scope` |
//! | podman | `libpod-ID.scope` |
//! | LXC, nspawn | `lxc.payload.NAME`, `machine-NAME.scope` |
//! | systemd | `NAME.service`, `NAME.scope` |
//!
//! An ID has 64 hexadecimal digits. Kubernetes' names stand in `/var/log/containers` and `/var/log/pods`, others in the state
//! directories of the runtimes; where none can be read the name is the first 12 digits of the ID.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a group's path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A container with an id.
    Container {
        /// Who runs it.
        runtime: Runtime,
        /// 64 hexadecimal digits.
        id: String,
        /// Of Kubernetes' pod, if it is in one.
        pod_uid: Option<String>,
    },
    /// A container with a name, or a service or scope of systemd.
    Named(String),
}

/// Who runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    Docker,
    Containerd,
    #[serde(rename = "cri-o")]
    CriO,
    Podman,
    /// An id without anybody's name.
    Unknown,
}

impl Runtime {
    /// Its name, as reports have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Unknown => "unknown",
        }
    }
}

/// What a subject is called, and what is known of its container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// `namespace/pod/container`, a container's or service's name, or the group's path.
    pub name: String,
    /// Who runs the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Kubernetes' namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Kubernetes' pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Kubernetes' name of the container in its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// What a directory is, by its name and those above it. None for slices and what has no meaning here.
#[must_use]
pub fn recognise(group: &Path) -> Option<Unit> {
    let name = group.file_name()?.to_str()?;
    let above: Vec<&str> = group.parent()?.iter().filter_map(|part| part.to_str()).collect();
    if let Some((runtime, id)) = container_id(name, &above) {
        let pod_uid = above.iter().rev().find_map(|part| pod_uid(part));
        return Some(Unit::Container { runtime, id: id.to_owned(), pod_uid });
    }
    let named = name
        .strip_prefix("lxc.payload.")
        .or_else(|| (above.last() == Some(&"lxc")).then_some(name))
        .or_else(|| name.strip_prefix("machine-")?.strip_suffix(".scope"))
        .or_else(|| (name.ends_with(".service") || name.ends_with(".scope")).then_some(name));
    named.map(|name| Unit::Named(unescaped(name)))
}

fn container_id<'a>(name: &'a str, above: &[&str]) -> Option<(Runtime, &'a str)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // With a wrong driver, runc names groups as in `system.slice:docker:ID`.
    let (who, id) = name.rsplit_once([':', '-']).unwrap_or(("", name));
    let is_id = id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // conmon looks after a container, and is none.
    if !is_id || who.ends_with("conmon") {
        return None;
    }
    let is_above = |part: &str| above.last() == Some(&part);
    let is_in_pod = above.iter().any(|part| pod_uid(part).is_some());
    let runtime = match who.rsplit(':').next().unwrap_or(who) {
        "docker" => Runtime::Docker,
        "cri-containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::CriO,
        "libpod" => Runtime::Podman,
        "" if is_above("docker") => Runtime::Docker,
        "" if is_above("libpod_parent") => Runtime::Podman,
        "" if is_in_pod => Runtime::Containerd,
        _ => Runtime::Unknown,
    };
    Some((runtime, id))
}

/// Of `pod<UID>` or `kubepods-burstable-pod<UID>.slice`, where `-` is written as `_`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid =
        if part.starts_with("kubepods") { part.split_once("-pod")?.1 } else { part.strip_prefix("pod")? };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || b"-_".contains(&byte));
    is_uid.then(|| uid.replace('_', "-"))
}

/// systemd writes letters that a file name must not have as `\x2d`.
fn unescaped(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii_graphic() => {
                plain.push(char::from(byte));
                plain += &part[2..];
            }
            _ => plain = format!("{plain}\\x{part}"),
        }
    }
    plain
}

/// Looks up names, in the files of the machine below a directory (`/`).
#[derive(Clone, Debug)]
pub struct Names {
    root: PathBuf,
}

impl Default for Names {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Names {
    /// What a group is called; `path` is that below the root of all groups.
    #[must_use]
    pub fn identify(&self, path: &Path, unit: Option<&Unit>) -> Identity {
        match unit {
            None => Identity { name: path.display().to_string(), ..Identity::default() },
            Some(Unit::Named(name)) => Identity { name: name.clone(), ..Identity::default() },
            Some(Unit::Container { runtime, id, pod_uid }) => {
                let found = self.kubernetes(id, pod_uid.as_deref()).or_else(|| self.by_runtime(id));
                let found = found.unwrap_or_else(|| Identity {
                    name: id.chars().take(12).collect(),
                    ..Identity::default()
                });
                Identity {
                    runtime: Some(*runtime),
                    container_id: Some(id.clone()),
                    pod_uid: pod_uid.clone(),
                    ..found
                }
            }
        }
    }

    /// From the names of logs: `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`, `/var/log/pods/NAMESPACE_POD_UID/`.
    fn kubernetes(&self, id: &str, pod_uid: Option<&str>) -> Option<Identity> {
        let ending = format!("-{id}.log");
        let log = self.names_in("var/log/containers").find_map(|name| {
            let stem = name.strip_suffix(&ending)?;
            let mut parts = stem.splitn(3, '_');
            Some(kubernetes(parts.next()?, parts.next()?, parts.next()?))
        });
        log.or_else(|| {
            let ending = format!("_{}", pod_uid?);
            self.names_in("var/log/pods").find_map(|name| {
                let (namespace, pod) = name.strip_suffix(&ending)?.split_once('_')?;
                let short = &id[..12];
                Some(Identity {
                    name: format!("{namespace}/{pod}/{short}"),
                    container: None,
                    ..kubernetes(pod, namespace, short)
                })
            })
        })
    }

    fn names_in(&self, directory: &str) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    }

    /// From the state of the runtimes.
    fn by_runtime(&self, id: &str) -> Option<Identity> {
        self.docker(id).or_else(|| self.podman(id)).or_else(|| self.bundle(id))
    }

    fn docker(&self, id: &str) -> Option<Identity> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Config {
            name: String,
        }
        let Config { name } = self.read(&format!("var/lib/docker/containers/{id}/config.v2.json"))?;
        Some(plain(name.trim_start_matches('/')))
    }

    fn podman(&self, id: &str) -> Option<Identity> {
        #[derive(Deserialize)]
        struct Known {
            id: String,
            #[serde(default)]
            names: Vec<String>,
        }
        let known: Vec<Known> = self.read("var/lib/containers/storage/overlay-containers/containers.json")?;
        let names = known.into_iter().find(|known| known.id == id)?.names;
        names.into_iter().next().map(|name| plain(&name))
    }

    /// The annotations of an OCI bundle, which CRI-O and containerd keep while the container runs.
    fn bundle(&self, id: &str) -> Option<Identity> {
        #[derive(Deserialize)]
        struct Bundle {
            #[serde(default)]
            annotations: std::collections::BTreeMap<String, String>,
        }
        let of_containerd = "run/containerd/io.containerd.runtime.v2.task";
        let mut places = vec![format!("run/containers/storage/overlay-containers/{id}/userdata/config.json")];
        places.extend(
            self.names_in(of_containerd).map(|space| format!("{of_containerd}/{space}/{id}/config.json")),
        );
        let Bundle { annotations } = places.iter().find_map(|place| self.read(place))?;
        let one_of = |names: [&str; 2]| names.iter().find_map(|&name| annotations.get(name));
        let pod = one_of(["io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name"]);
        let namespace = one_of(["io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace"]);
        let container = one_of(["io.kubernetes.container.name", "io.kubernetes.cri.container-name"]);
        match (pod, namespace) {
            (Some(pod), Some(namespace)) => {
                Some(kubernetes(pod, namespace, container.map_or("POD", String::as_str)))
            }
            _ => annotations.get("nerdctl/name").map(|name| plain(name)),
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, file: &str) -> Option<T> {
        serde_json::from_reader(BufReader::new(File::open(self.root.join(file)).ok()?)).ok()
    }
}

fn plain(name: &str) -> Identity {
    Identity { name: name.to_owned(), ..Identity::default() }
}

fn kubernetes(pod: &str, namespace: &str, container: &str) -> Identity {
    Identity {
        name: format!("{namespace}/{pod}/{container}"),
        namespace: Some(namespace.to_owned()),
        pod: Some(pod.to_owned()),
        container: Some(container.to_owned()),
        ..Identity::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "3f0c2d1e-8a4b-4c5d-9e6f-0123456789ab";

    fn container(path: &str) -> Option<(Runtime, Option<String>)> {
        match recognise(Path::new(&path.replace("ID", ID).replace("UID", UID)))? {
            Unit::Container { runtime, id, pod_uid } => {
                assert_eq!(id, ID);
                Some((runtime, pod_uid))
            }
            Unit::Named(_) => None,
        }
    }

    #[test]
    fn containers_are_told_by_their_path() {
        let in_pod = |runtime| Some((runtime, Some(UID.to_owned())));
        let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
        let cases = [
            ("docker/ID".to_owned(), Some((Runtime::Docker, None))),
            ("system.slice/docker-ID.scope".into(), Some((Runtime::Docker, None))),
            ("machine.slice/libpod-ID.scope".into(), Some((Runtime::Podman, None))),
            ("machine.slice/libpod-conmon-ID.scope".into(), None),
            (format!("kubepods/burstable/pod{UID}/ID"), in_pod(Runtime::Containerd)),
            (format!("kubepods.slice/{slice}/cri-containerd-ID.scope"), in_pod(Runtime::Containerd)),
            (format!("kubepods.slice/{slice}/crio-ID.scope"), in_pod(Runtime::CriO)),
            (format!("kubepods.slice/{slice}/crio-conmon-ID.scope"), None),
            (
                format!("system.slice/containerd.service/{slice}:cri-containerd:ID"),
                Some((Runtime::Containerd, None)),
            ),
            ("actions/ID".into(), Some((Runtime::Unknown, None))),
            ("docker/IDe".into(), None),
        ];
        for (path, expected) in cases {
            assert_eq!(container(&path), expected, "{path}");
        }
    }

    #[test]
    fn units_have_their_own_name() {
        let named = |path: &str| match recognise(Path::new(path)) {
            Some(Unit::Named(name)) => Some(name),
            _ => None,
        };
        assert_eq!(named("system.slice/nginx.service"), Some("nginx.service".into()));
        assert_eq!(named("machine.slice/machine-web\\x2d1.scope"), Some("web-1".into()));
        assert_eq!(named("lxc.payload.web"), Some("web".into()));
        assert_eq!(named("lxc/web"), Some("web".into()));
        assert_eq!(named("system.slice"), None);
        assert_eq!(named("broken\\xzz.service"), Some("broken\\xzz.service".into()));
    }

    #[test]
    fn names_come_from_the_logs_and_the_state_of_the_runtimes() {
        let root = tempfile::tempdir().unwrap();
        let names = Names { root: root.path().to_owned() };
        let write = |file: String, text: String| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let unit = |pod_uid: Option<&str>| Unit::Container {
            runtime: Runtime::Containerd,
            id: ID.into(),
            pod_uid: pod_uid.map(Into::into),
        };
        let name = |pod_uid| names.identify(Path::new("x"), Some(&unit(pod_uid))).name;

        assert_eq!(name(None), "0123456789ab");
        write(
            format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"),
            r#"{"annotations":{"io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop",
                "io.kubernetes.cri.container-name":"node"}}"#.into(),
        );
        assert_eq!(name(None), "shop/web-0/node");
        write(
            "var/lib/containers/storage/overlay-containers/containers.json".into(),
            format!(r#"[{{"id":"{ID}","names":["quiet_podman"]}}]"#),
        );
        assert_eq!(name(None), "quiet_podman");
        write(format!("var/lib/docker/containers/{ID}/config.v2.json"), r#"{"Name":"/web","ID":"x"}"#.into());
        assert_eq!(name(None), "web");
        write(format!("var/log/pods/shop_web-1_{UID}/node/0.log"), String::new());
        assert_eq!(name(Some(UID)), "shop/web-1/0123456789ab");
        write(format!("var/log/containers/web-2_shop_node-{ID}.log"), String::new());
        let found = names.identify(Path::new("x"), Some(&unit(Some(UID))));
        assert_eq!(found.name, "shop/web-2/node");
        assert_eq!((found.namespace.as_deref(), found.pod_uid.as_deref()), (Some("shop"), Some(UID)));
        assert_eq!(names.identify(Path::new("a/b"), None).name, "a/b");
    }
}
