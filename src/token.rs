//! `skiff token`: bootstrap tokens, by which machines join.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use skiff_controllers::controllers::bootstrap::TYPE;

use crate::discovery::{Token, ask, key_hash};

/// Where tokens are.
const NAMESPACE: &str = "kube-system";

/// Settings of `token`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TokenArgs {
    /// The server's data directory.
    #[arg(long, global = true, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// kubeconfig of an administrator. Default: that in the data directory, else the one `kubectl` uses.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Make a token and print it.
    Create {
        /// The token, as in abcdef.0123456789abcdef. Default: a random one.
        token: Option<Token>,
        /// How long it is good; 0 for ever.
        #[arg(long, default_value = "24h")]
        ttl: jiff::SignedDuration,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
        /// Groups that its user has besides system:bootstrappers; each begins with system:bootstrappers:
        #[arg(long, value_delimiter = ',')]
        groups: Vec<String>,
        /// Print the whole command that makes a machine a node.
        #[arg(long)]
        print_join_command: bool,
    },
    /// List tokens.
    List,
    /// Delete tokens: machines that have joined stay, others cannot join with them any more.
    Delete {
        /// Tokens, or their first six letters.
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

/// Carries the command out.
pub(crate) async fn run(args: TokenArgs) -> anyhow::Result<()> {
    let config = admin(&args).await?;
    let url = config.cluster_url.to_string();
    let client = kube::Client::try_from(config)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    match args.action {
        Action::Create { token, ttl, description, groups, print_join_command } => {
            let token = token.unwrap_or_else(random);
            if ttl.is_negative() {
                bail!("--ttl is negative: name how long the token is good, as in 24h");
            }
            let object = secret(&token, ttl, &description, &groups);
            match ask(&url, secrets.create(&PostParams::default(), &object)).await {
                Err(e) if code(&e) == 409 => {
                    bail!("token {} exists already: delete it first, or name another", token.id)
                }
                answer => drop(answer.context("cannot make the token")?),
            }
            if print_join_command {
                println!("{}", join_command(&url, &client, &token).await?);
            } else {
                println!("{token}");
            }
        }
        Action::List => {
            let params = ListParams::default().fields(&format!("type={TYPE}"));
            let found = ask(&url, secrets.list(&params)).await.context("cannot list tokens")?;
            print!("{}", table(&found.items, jiff::Timestamp::now()));
        }
        Action::Delete { tokens } => {
            for token in tokens {
                let id = token.split('.').next().unwrap_or_default();
                let name = format!("bootstrap-token-{id}");
                match ask(&url, secrets.delete(&name, &DeleteParams::default())).await {
                    Err(e) if code(&e) == 404 => bail!("no token {id}: see `skiff token list`"),
                    answer => drop(answer.with_context(|| format!("cannot delete token {id}"))?),
                }
                println!("token {id} deleted");
            }
        }
    }
    Ok(())
}

fn code(e: &anyhow::Error) -> u16 {
    match e.downcast_ref() {
        Some(kube::Error::Api(s)) => s.code,
        _ => 0,
    }
}

async fn admin(args: &TokenArgs) -> anyhow::Result<kube::Config> {
    let own = args.data_dir.join("kubeconfig/admin.yaml");
    let file = match &args.kubeconfig {
        Some(file) => file.clone(),
        None if own.exists() => own,
        None => crate::cli::kubeconfig_path(None)?,
    };
    if !Path::new(&file).exists() {
        bail!("no {}: run this on the server, or name a kubeconfig with --kubeconfig", file.display());
    }
    crate::components::client_config(&file).await
}

/// Letters and digits from the system's random numbers.
fn random() -> Token {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let text =
        |n: usize| -> String { (0..n).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect() };
    Token { id: text(6), secret: text(16) }
}

fn secret(token: &Token, ttl: jiff::SignedDuration, description: &str, groups: &[String]) -> Secret {
    let end = (!ttl.is_zero()).then(|| jiff::Timestamp::now() + ttl);
    let end = end.map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let fields = [
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("usage-bootstrap-authentication", "true".into()),
        ("usage-bootstrap-signing", "true".into()),
        ("expiration", end.unwrap_or_default()),
        ("description", description.to_owned()),
        ("auth-extra-groups", groups.join(",")),
    ];
    let data = fields.into_iter().filter(|(_, v)| !v.is_empty());
    Secret {
        metadata: ObjectMeta { name: Some(format!("bootstrap-token-{}", token.id)), ..ObjectMeta::default() },
        type_: Some(TYPE.into()),
        data: Some(data.map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).collect()),
        ..Secret::default()
    }
}

/// What a person types on the machine that joins.
async fn join_command(url: &str, client: &kube::Client, token: &Token) -> anyhow::Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    let found = ask(url, maps.get("cluster-info")).await.context("the cluster does not say where it is")?;
    let text = found.data.unwrap_or_default().remove("kubeconfig").unwrap_or_default();
    let v = skiff_core::codec::parse_yaml(text.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?.value;
    let cluster = &v["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://"));
    let ca = cluster["certificate-authority-data"].as_str().unwrap_or_default();
    use base64::Engine as _;
    let ca = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(ca)?)?;
    let server = server.context("the cluster does not say where it is")?;
    if server.starts_with("127.") || server.starts_with("localhost") {
        bail!("the server is known as {server}, which no other machine reaches: start it with --advertise-address");
    }
    Ok(format!("skiff join {server} --token {token} --ca-cert-hash {}", key_hash(&ca)?))
}

fn table(secrets: &[Secret], now: jiff::Timestamp) -> String {
    let mut rows = vec![["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION"].map(str::to_owned)];
    for s in secrets {
        let empty = BTreeMap::new();
        let data = s.data.as_ref().unwrap_or(&empty);
        let field = |k: &str| data.get(k).map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default();
        let end = field("expiration");
        let left = match end.parse::<jiff::Timestamp>() {
            Ok(t) if t > now => {
                let left = jiff::SignedDuration::from_secs(t.duration_since(now).as_secs());
                format!("{left:#}").replace(' ', "")
            }
            Ok(_) => "<expired>".into(),
            Err(_) if end.is_empty() => "<forever>".into(),
            Err(_) => "<invalid>".into(),
        };
        let usages: Vec<&str> = ["authentication", "signing"]
            .into_iter()
            .filter(|u| field(&format!("usage-bootstrap-{u}")) == "true")
            .collect();
        let or = |t: String, other: &str| if t.is_empty() { other.to_owned() } else { t };
        rows.push([
            format!("{}.{}", field("token-id"), field("token-secret")),
            left,
            or(end, "<never>"),
            or(usages.join(","), "<none>"),
            or(field("description"), "<none>"),
        ]);
    }
    let widths: Vec<usize> = (0..5).map(|i| rows.iter().map(|r| r[i].len()).max().unwrap_or(0)).collect();
    let line = |r: &[String; 5]| {
        let cells: Vec<String> = r.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_with_what_they_are_for() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let made = secret(&token, jiff::SignedDuration::from_hours(2), "lab", &[]);
        let text = table(&[made, secret(&token, jiff::SignedDuration::ZERO, "", &[])], jiff::Timestamp::now());
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION"]);
        assert_eq!(
            (lines[1][0], lines[1][3], lines[1][4]),
            ("abcdef.0123456789abcdef", "authentication,signing", "lab")
        );
        assert_eq!(lines[2][1..], ["<forever>", "<never>", "authentication,signing", "<none>"]);
    }

    #[test]
    fn random_tokens_have_the_form() {
        let (a, b) = (random(), random());
        assert!(a.to_string().parse::<Token>().is_ok());
        assert_ne!(a.secret, b.secret);
    }
}
