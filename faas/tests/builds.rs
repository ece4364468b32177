//! Builds by a real engine, where one answers and has the base image of `hack/images.sh python`.
#![allow(clippy::unwrap_used)]

mod served;
mod supplier;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use serde_json::json;
use served::served;
use skiff_controllers::runtime::definitions::define;
use skiff_faas::api::{FunctionRevision, definitions};
use skiff_faas::build::{BuildError, Builder, Config, Docker, Engine, Supplies};
use skiff_faas::instance::{Address, Class, StartError};
use skiff_faas::process::{Access, Host, Processes};
use skiff_faas::runtime::Images;
use tokio_util::sync::CancellationToken;

const WHEEL: &str = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + '/skiffsix-1.2-py3-none-any.whl', 'w') as z:
    z.writestr('skiffsix.py', 'six = 6\n')
    z.writestr('skiffsix-1.2.dist-info/METADATA', 'Metadata-Version: 2.1\nName: skiffsix\nVersion: 1.2\n')
    z.writestr('skiffsix-1.2.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    z.writestr('skiffsix-1.2.dist-info/RECORD', '')
"#;

/// A gzipped tar of a directory with a wheel in `wheels/` and these files.
fn archive(dir: &Path, files: &[(&str, &str)]) -> Vec<u8> {
    std::fs::create_dir_all(dir.join("wheels")).unwrap();
    assert!(Command::new("python3").args(["-c", WHEEL]).arg(dir.join("wheels")).status().unwrap().success());
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let out = Command::new("tar").arg("-C").arg(dir).args(["-cz", "."]).output().unwrap();
    assert!(out.status.success());
    out.stdout
}

fn revision(name: &str, code: serde_json::Value) -> FunctionRevision {
    let revision = json!({
        "apiVersion": "skiff.dev/v1", "kind": "FunctionRevision", "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"function": "f", "number": 1, "generation": 1, "digest": name, "code": code},
    });
    serde_json::from_value(revision).unwrap()
}

const MAIN: &str = "import skiffsix\ndef main(p):\n    return skiffsix.six\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_the_packages_or_the_reason_why_not() {
    let Ok(docker) = Docker::connect(Path::new("/var/run/docker.sock"), None).await else { return };
    if !docker.has("skiff/python:1").await.unwrap_or(false) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = served(dir.path()).await;
    define(&client, "tests", &definitions()).await.unwrap();
    let pip_args = ["--no-index", "--find-links", "/function/wheels"].map(str::to_owned).to_vec();
    let builder = Arc::new(Builder::new(client.clone(), Arc::new(docker), Config { pip_args, ..Config::default() }));
    let build = async |name: &str, files: &[(&str, &str)]| {
        let revision = uploaded(&client, dir.path(), name, files).await;
        let result = builder.image(&revision).await;
        let log =
            Api::<ConfigMap>::namespaced(client.clone(), "default").get_opt(&format!("{name}-build")).await.unwrap();
        (result.map(Option::unwrap), log.and_then(|m| m.data?.remove("log")).unwrap_or_default())
    };
    let plain = uploaded(&client, dir.path(), "plain", &[("main.py", "x = 1\n")]).await;
    assert_eq!(builder.image(&plain).await.unwrap(), None);
    // Made new each time: what was built before would not be built again.
    let fresh = format!("# {:?}\n{MAIN}", std::time::SystemTime::now());
    let (image, log) = build("well", &[("requirements.txt", "skiffsix>=1\n"), ("main.py", &fresh)]).await;
    let image = image.unwrap_or_else(|e| panic!("{e}\n{log}"));
    assert!(log.contains("Successfully installed skiffsix-1.2"), "{log}");
    let run = |image: &str| {
        let script = "import sys; sys.path[:0] = ['/skiff']; import runner; print(runner.load('/function', '')(runner.Request('POST', '/', {}, b'')))";
        Command::new("docker")
            .args(["run", "--rm", "--network", "none", image, "python3", "-c", script])
            .output()
            .unwrap()
    };
    let out = run(&image);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "6\n", "{}", String::from_utf8_lossy(&out.stderr));
    let (again, _) = build("again", &[("requirements.txt", "skiffsix>=1\n"), ("main.py", &fresh)]).await;
    assert!(again.is_ok());

    let (error, log) = build("bad", &[("requirements.txt", "nothing-of-that-name\n"), ("main.py", MAIN)]).await;
    let Err(BuildError::Failed { log_tail }) = error else { panic!("{error:?}") };
    assert!(
        log_tail.contains("nothing-of-that-name") && log_tail.contains("returned a non-zero code: 1"),
        "{log_tail}"
    );
    assert!(log.contains("No matching distribution"), "{log}");
    let (error, _) = build("file", &[("Dockerfile", "FRUM x\n"), ("main.py", MAIN)]).await;
    assert!(matches!(&error, Err(BuildError::Failed { log_tail }) if log_tail.contains("FRUM")), "{error:?}");

    // Images that no revision has go, but not those of others, nor one that a container has.
    let engine = |args: &[&str]| Command::new("docker").args(args).output().unwrap().status.success();
    let other = format!("skiff.local/fn:{}", "0".repeat(32));
    assert!(engine(&["tag", "skiff/python:1", &other]));
    let there = |image: &str| engine(&["image", "inspect", image]);
    builder.tidy(&[image.as_str()].into()).await.unwrap();
    let name = format!("skiff-test-{}", std::process::id());
    assert!(there(&image) && engine(&["create", "--name", &name, &image, "true"]));
    builder.tidy(&[].into()).await.unwrap();
    assert!(there(&image) && engine(&["rm", &name]));
    builder.tidy(&[].into()).await.unwrap();
    assert!(!there(&image) && there(&other) && engine(&["rmi", &other]));
    let (built, _) = build("anew", &[("requirements.txt", "skiffsix>=1\n"), ("main.py", &fresh)]).await;
    assert!(built.as_ref().is_ok_and(|image| there(image)), "{built:?}");
    builder.tidy(&[].into()).await.unwrap();
}

/// Packages come from the owner's index, the image goes to the owner's registry, and who pulls it there has the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_through_a_registry() {
    let network = Some("host".to_owned());
    let Ok(docker) = Docker::connect(Path::new("/var/run/docker.sock"), network).await else { return };
    if !docker.has("skiff/python:1").await.unwrap_or(false) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = served(dir.path()).await;
    archive(&dir.path().join("packages"), &[]);
    let supplier = supplier::start(&dir.path().join("packages/wheels"), Some("team:geheim")).await;
    let at = supplier.address;
    let supplies = Supplies {
        registry: Some(format!("{at}/team")),
        pip_index: Some(format!("http://{at}/simple/").parse().unwrap()),
        registry_secret: Some("default/registry".parse().unwrap()),
        ..Supplies::default()
    };
    let config = supplies.build(Images::default(), "n");
    let docker: Arc<dyn Engine> = Arc::new(docker);
    let builder = Arc::new(Builder::new(client.clone(), docker.clone(), config));
    assert_eq!(builder.only_node(), None, "any node can have it");
    let fresh = format!("# {:?}\n{MAIN}", std::time::SystemTime::now());
    let files = [("requirements.txt", "skiffsix\n"), ("main.py", fresh.as_str())];
    let revision = uploaded(&client, dir.path(), "pushed", &files).await;
    // Without the Secret, and with none named, nothing is pushed.
    let error = builder.image(&revision).await.unwrap_err();
    assert!(
        matches!(&error, BuildError::Other(e) if e.to_string().contains("no Secret default/registry")),
        "{error:?}"
    );
    let open = Supplies { registry_secret: None, ..supplies };
    let open = Arc::new(Builder::new(client.clone(), docker, open.build(Images::default(), "n")));
    let error = open.image(&revision).await.unwrap_err();
    assert!(matches!(&error, BuildError::Other(e) if e.to_string().contains("not pushed")), "{error:?}");
    let config = json!({"auths": {at.to_string(): {"username": "team", "password": "geheim"}}}).to_string();
    let secret = json!({"metadata": {"name": "registry"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config}});
    let secrets = Api::<Secret>::namespaced(client.clone(), "default");
    secrets.create(&Default::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let image = builder.image(&revision).await.unwrap().unwrap();
    assert!(image.starts_with(&format!("{at}/team/fn:")), "{image}");
    let login = dir.path().join("login");
    std::fs::create_dir(&login).unwrap();
    std::fs::write(login.join("config.json"), config).unwrap();
    let engine = |args: &[&str]| {
        let out = Command::new("docker").arg("--config").arg(&login).args(args).output().unwrap();
        assert!(out.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let id = |image: &str| engine(&["image", "inspect", "-f", "{{.Id}}", image]);
    let built = id(&image);
    engine(&["rmi", &image]);
    engine(&["pull", "-q", &image]);
    assert_eq!(id(&image), built);
    engine(&["rmi", &image]);
}

/// Processes have their packages from the node, once for all that ask for the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_its_packages() {
    let pip = Command::new("/usr/bin/python3").args(["-m", "pip", "--version"]).output();
    if !nix::unistd::geteuid().is_root() || !pip.is_ok_and(|o| o.status.success()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = served(dir.path()).await;
    let mut config = skiff_faas::process::Config::new("n", dir.path().join("fn"));
    config.pip_args =
        vec!["--no-index".to_owned(), "--find-links".to_owned(), dir.path().join("one/wheels").display().to_string()];
    let access = Access { host: Host::new(config).unwrap(), keys: None };
    let host = Processes::new(client.clone(), &access, None, CancellationToken::new()).unwrap();
    host.look().await;
    for (name, wanted, fault) in [
        ("one", "skiffsix==1.2\n", None),
        ("two", "nothing-of-that-name\n", Some("pip: ")),
        ("three", "-r /etc/shadow\n", Some("not a package's name")),
    ] {
        let revision = uploaded(&client, dir.path(), name, &[("requirements.txt", wanted), ("main.py", MAIN)]).await;
        match (host.start(Arc::new(revision)).await, fault) {
            (Ok(instance), None) => {
                let Address::Unix(socket) = &instance.address else { panic!() };
                let out = Command::new("curl")
                    .args(["-s", "-d", "{}", "http://f/", "--unix-socket"])
                    .arg(socket)
                    .output()
                    .unwrap();
                assert_eq!(String::from_utf8_lossy(&out.stdout), "6");
            }
            (Err(StartError::Code(said)), Some(part)) => assert!(said.contains(part), "{said}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

/// A revision of an archive that is uploaded in one part.
async fn uploaded(client: &kube::Client, dir: &Path, name: &str, files: &[(&str, &str)]) -> FunctionRevision {
    let data = archive(&dir.join(name), files);
    let path = dir.join("data");
    std::fs::write(&path, &data).unwrap();
    let sum = Command::new("sha256sum").arg(path).output().unwrap().stdout;
    let sum = String::from_utf8(sum[..64].to_vec()).unwrap();
    let map = ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(format!("{name}-0")), ..Default::default() },
        binary_data: Some([("data".to_owned(), k8s_openapi::ByteString(data))].into()),
        ..ConfigMap::default()
    };
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    maps.create(&Default::default(), &map).await.unwrap();
    revision(name, json!({"source": {"archive": {"name": name, "parts": 1, "sha256": sum}}}))
}
