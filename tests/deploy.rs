//! What is deployed: the static program where there is nothing else, the image made of it, and the manifests by the
//! tools that know their schemas and by the rules of Kubernetes' *restricted* profile.

mod testbed;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use testbed::{Scratch, name_of, run_to_end, skip, try_run_to_end};

/// Everything is compiled once more, for another target.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Who the image's program is.
const USER: &str = "65532:65532";
const MANIFESTS: &str = "deploy/k8s/sidecar";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn in_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// One of the tools of `scripts/linters.txt`; where it is not installed, the test says that it is skipped.
fn linter(test: &str, name: &str) -> Option<PathBuf> {
    let path = root().join("target/linters/bin").join(name);
    if path.is_file() {
        return Some(path);
    }
    skip(test, &format!("not installed: {name} (scripts/install-tools.sh)"));
    None
}

/// The manifests, in order of their names.
fn manifests() -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join(MANIFESTS)).expect("there are manifests");
    let mut found: Vec<PathBuf> = folder.map(|entry| entry.expect("a folder can be listed").path()).collect();
    found.sort();
    assert!(found.len() >= 3 && found.iter().all(|path| path.extension().is_some_and(|it| it == "yaml")), "{found:?}");
    found
}

/// The documents of files in YAML.
fn documents(python: &Path, files: &[PathBuf]) -> Vec<Value> {
    let script = "import json, sys, yaml\n\
                  print(json.dumps([d for f in sys.argv[1:] for d in yaml.safe_load_all(open(f)) if d]))";
    let text = run_to_end(Command::new(python).args(["-c", script]).args(files), COMMAND_LIMIT);
    serde_json::from_str(&text).expect("json.dumps writes JSON")
}

// --- The static program -------------------------------------------------------------------------

/// `make static`, once for all tests, with the profile that builds quickly.
fn static_program() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let said = run_to_end(in_root("scripts/static.sh").arg("dev").env_remove("STATIC_TARGET"), BUILD_LIMIT);
        root().join(said.trim())
    });
    BUILT.clone()
}

/// Runs the program in a root that holds nothing but itself, as a user without privileges.
#[track_caller]
fn run_alone(root: &Path, program: &str, words: &[&str]) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "chroot", &format!("--userspec={USER}")]).arg(root).arg(program).args(words);
    run_to_end(&mut command, COMMAND_LIMIT)
}

/// What shows that it works at all: its name, and randomness, which a root without devices has no file for.
#[track_caller]
fn check_alone(root: &Path, program: &str) {
    let version = run_alone(root, program, &["--version"]);
    assert!(version.starts_with(&format!("adit v{}", env!("CARGO_PKG_VERSION"))), "{version}");
    let keys = [0; 2].map(|_| run_alone(root, program, &["genkey"]));
    assert!(keys.iter().all(|key| key.trim().len() == 44) && keys[0] != keys[1]);
}

#[test]
fn the_static_program_runs_in_an_empty_root() {
    let program = static_program();
    let linked = Command::new("ldd").arg(&program).output().expect("glibc has ldd");
    let said = String::from_utf8_lossy(&linked.stdout).into_owned() + &String::from_utf8_lossy(&linked.stderr);
    assert!(said.contains("statically linked") || said.contains("not a dynamic executable"), "{said}");

    privileged!();
    let scratch = Scratch::new();
    fs::copy(&program, scratch.file("adit")).expect("there is room for a copy");
    check_alone(scratch.path(), "/adit");
}

/// By what cargo-auditable writes into it: tools that look for known vulnerabilities need no source.
#[test]
fn the_static_program_lists_what_it_was_built_from() {
    if Command::new("cargo-auditable").arg("--version").output().is_err() {
        return skip(name_of(&|| ()), "cargo-auditable is not installed (scripts/install-tools.sh)");
    }
    let program = static_program();
    let scratch = Scratch::new();
    let section = scratch.file("section");
    let dump = format!("--dump-section=.dep-v0={}", section.display());
    run_to_end(Command::new("objcopy").arg(dump).arg(&program).arg(scratch.file("copy")), COMMAND_LIMIT);
    let script = "import sys, zlib; sys.stdout.buffer.write(zlib.decompress(open(sys.argv[1], 'rb').read()))";
    let text = run_to_end(Command::new("python3").args(["-c", script]).arg(&section), COMMAND_LIMIT);
    let list: serde_json::Value = serde_json::from_str(&text).expect("the list is JSON");
    let names: Vec<&str> =
        list["packages"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
    for linked in ["adit", "ring", "smoltcp", "zeroize"] {
        assert!(names.contains(&linked), "{linked} is not among {names:?}");
    }
}

// --- The image ----------------------------------------------------------------------------------

/// buildah on a storage of the test's own.
struct Store(Scratch);

impl Store {
    fn buildah(&self, words: &[&str]) -> String {
        let folder = |name| self.0.file(name).into_os_string().into_string().expect("scratch paths are UTF-8");
        let mut command = in_root("buildah");
        command.args(["--storage-driver", "vfs", "--root", &folder("root"), "--runroot", &folder("run")]);
        run_to_end(command.args(words), COMMAND_LIMIT)
    }
}

#[test]
fn the_image_is_the_program_and_nothing_else() {
    privileged!("buildah");
    let store = Store(Scratch::new());
    let mut build = in_root("scripts/image.sh");
    build.arg(static_program()).env("ADIT_IMAGE_STORE", store.0.path());
    build.env("ADIT_IMAGE_ARCHIVE", store.0.file("image.tar"));
    let tag = run_to_end(&mut build, COMMAND_LIMIT).trim().to_owned();
    assert_eq!(tag, format!("adit:{}", env!("CARGO_PKG_VERSION")));
    assert!(store.0.file("image.tar").is_file());

    let image: Value = serde_json::from_str(&store.buildah(&["inspect", "--type", "image", &tag])).expect("JSON");
    let config = &image["OCIv1"]["config"];
    assert_eq!(config["User"], USER);
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/adit"]));
    assert_eq!(config["Cmd"], serde_json::json!(["proxy", "-c", "/etc/adit/adit.conf"]));

    let container = store.buildah(&["from", &tag]).trim().to_owned();
    let mounted = PathBuf::from(store.buildah(&["mount", &container]).trim());
    let mut files = Vec::new();
    let mut folders = vec![mounted.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the image can be listed") {
            let path = entry.expect("the image can be listed").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert_eq!(files, [mounted.join("usr/bin/adit")]);
    let mode = fs::metadata(&files[0]).expect("it was just listed").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "neither writable by others nor setuid");
    check_alone(&mounted, "/usr/bin/adit");
    store.buildah(&["rm", &container]);
}

#[test]
fn the_dockerfile_passes_hadolint() {
    let Some(hadolint) = linter(name_of(&|| ()), "hadolint") else { return };
    run_to_end(in_root(hadolint).args(["--failure-threshold", "style", "deploy/docker/Dockerfile"]), COMMAND_LIMIT);
}

#[test]
fn the_compose_file_has_the_schema_of_compose_and_gives_the_sidecar_nothing() {
    let test = name_of(&|| ());
    let Some(check) = linter(test, "check-jsonschema") else { return };
    let file = "deploy/docker/compose.yaml";
    run_to_end(in_root(check).args(["--builtin-schema", "vendor.compose-spec", file]), COMMAND_LIMIT);

    let Some(python) = linter(test, "python") else { return };
    let document = documents(&python, &[root().join(file)]).remove(0);
    let sidecar = &document["services"]["adit"];
    assert_eq!(sidecar["image"], format!("adit:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(sidecar["user"], USER);
    assert_eq!(sidecar["read_only"], true);
    assert_eq!(sidecar["cap_drop"], serde_json::json!(["ALL"]));
    assert_eq!(sidecar["security_opt"], serde_json::json!(["no-new-privileges:true"]));
    for key in ["cap_add", "devices", "privileged", "sysctls"] {
        assert!(sidecar.get(key).is_none(), "{key}");
    }
}

// --- Kubernetes ---------------------------------------------------------------------------------

#[test]
fn the_manifests_have_the_schemas_of_kubernetes() {
    let Some(validate) = linter(name_of(&|| ()), "kubernetes-validate") else { return };
    // The oldest that starts sidecars before the application by default, and the newest that is known.
    for version in [&["-k", "1.29"][..], &[]] {
        run_to_end(in_root(&validate).arg("--strict").args(version).args(manifests()), COMMAND_LIMIT);
    }
}

/// What Pod Security *restricted* demands of a pod's specification: what it finds against it.
fn against_restricted(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut demand = |holds: bool, what: String| found.extend((!holds).then_some(what));
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        demand(pod[key] != true, format!("{key} is set"));
    }
    let allowed =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().expect("a volume is an object").keys().filter(|key| *key != "name");
        for kind in kinds {
            demand(allowed.contains(&kind.as_str()), format!("a volume of the kind {kind}"));
        }
    }
    let whole = &pod["securityContext"];
    for container in ["initContainers", "containers"].iter().flat_map(|key| pod[*key].as_array().into_iter().flatten())
    {
        let (own, name) = (&container["securityContext"], &container["name"]);
        let either = |key: &str| if own[key].is_null() { &whole[key] } else { &own[key] };
        demand(either("runAsNonRoot") == true, format!("{name}: runAsNonRoot"));
        demand(either("runAsUser") != 0, format!("{name}: runAsUser"));
        demand(either("seccompProfile")["type"] == "RuntimeDefault", format!("{name}: seccompProfile"));
        demand(own["allowPrivilegeEscalation"] == false, format!("{name}: allowPrivilegeEscalation"));
        demand(own["privileged"] != true, format!("{name}: privileged"));
        demand(own["capabilities"]["drop"] == serde_json::json!(["ALL"]), format!("{name}: capabilities.drop"));
        demand(own["capabilities"]["add"].is_null(), format!("{name}: capabilities.add"));
        // Not of the profile, but promised.
        demand(own["readOnlyRootFilesystem"] == true, format!("{name}: readOnlyRootFilesystem"));
        demand(container["resources"]["limits"]["memory"].is_string(), format!("{name}: a limit of memory"));
    }
    found
}

#[test]
fn the_sidecar_is_native_probed_and_restricted() {
    let Some(python) = linter(name_of(&|| ()), "python") else { return };
    let documents = documents(&python, &manifests());
    let of_kind = |kind: &str| documents.iter().find(|it| it["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));

    let labels = &of_kind("Namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");

    let pod = &of_kind("Deployment")["spec"]["template"]["spec"];
    assert_eq!(against_restricted(pod), [""; 0]);
    // And the check can see.
    let mut loose = pod.clone();
    loose["hostNetwork"] = true.into();
    loose["initContainers"][0]["securityContext"]["capabilities"]["add"] = serde_json::json!(["NET_ADMIN"]);
    loose["volumes"][0] = serde_json::json!({ "name": "config", "hostPath": { "path": "/" } });
    assert_eq!(against_restricted(&loose).len(), 3);

    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["image"], format!("adit:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    for (probe, path) in [("startupProbe", "/readyz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(sidecar[probe]["httpGet"]["path"], path, "{probe}");
    }
    let secret = of_kind("Secret")["metadata"]["name"].as_str().expect("a secret has a name");
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], secret);
}

// --- The examples of the sidecar's file ---------------------------------------------------------

/// `adit proxy --check` on a file, with a key in the place of the one that it names.
#[track_caller]
fn check_file(scratch: &Scratch, name: &str, text: &str) {
    let key = scratch.write("private-key", &testbed::Keys::generate().private);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let file = scratch.write(name, text);
    let mut check = in_root(testbed::Implementation::Adit.program());
    check
        .args(["proxy", "--check", "-c"])
        .arg(file)
        .env("ADIT_INTERFACE_PRIVATEKEYFILE", key)
        .envs([("SOCKS_PASSWORD", "hush"), ("PROXY_PASSWORD", "hush")]);
    let output = try_run_to_end(&mut check, COMMAND_LIMIT).expect("the program can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    assert!(!said.contains("warning"), "{name}: {said}");
}

#[test]
fn the_files_that_are_shown_are_without_a_mistake() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(root().join("deploy/docker/adit.conf")).expect("the example is there");
    check_file(&scratch, "docker.conf", &text);

    let Some(python) = linter(name_of(&|| ()), "python") else { return };
    let manifests = documents(&python, &manifests());
    let secret = manifests.iter().find(|it| it["kind"] == "Secret").expect("there is a secret");
    let port = "0.0.0.0:9586";
    let text = secret["stringData"]["adit.conf"].as_str().expect("the secret has the file");
    assert!(text.contains(&format!("BindAddress = {port}")), "the probes' port: {text}");
    check_file(&scratch, "kubernetes.conf", text);
}

/// Every complete file in docs/sidecar.md: those with an interface and a peer.
#[test]
fn the_files_of_the_documentation_are_without_a_mistake() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(root().join("docs/sidecar.md")).expect("the document is there");
    let blocks = text.split("```ini\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let whole = "[Interface]\nPrivateKeyFile = /dev/null\nAddress = 10.8.0.2/32, fd00:8::2/128\nDNS = 10.8.0.1\n\n\
                 [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 0.0.0.0/0, ::/0\n\
                 Endpoint = vpn.example.com:51820\n\n";
    let mut count = 0;
    for (number, block) in blocks.enumerate() {
        // A block that shows one section is put below what it leaves out.
        let text = if block.contains("[Interface]") { block.to_owned() } else { format!("{whole}{block}") };
        let text = text.replace("/etc/adit", root().join("tests/certificates").to_str().expect("a path in UTF-8"));
        check_file(&scratch, &format!("sidecar.md-{}.conf", number + 1), &text);
        count += 1;
    }
    assert!(count >= 5, "{count} examples");
}
