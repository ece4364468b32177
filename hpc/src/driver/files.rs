//! Files by the commands of any system, wherever there is a [`Shell`].

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::text::Text;
use super::{Came, Entry, Fact, Files, Output, QUICK, Shell, SlurmError};
use crate::script::quote;

/// Time for moving files, beside a second for each of their MiB, and for removing directories.
const MOVE: Duration = Duration::from_secs(600);
/// Bytes of a file that are moved by one command, where others can speak meanwhile, and where they wait for it.
const PARTS: (u64, u64) = (1 << 30, 64 << 20);
/// Prints the digest of its input: by the library that knows the processor's instructions for it, which is several times
/// faster, where its tool is installed.
const DIGEST: &str = "digest() { openssl dgst -sha256 -r <\"$1\" 2>/dev/null || sha256sum <\"$1\"; }\n";

/// The digest at the beginning of a line.
fn digest(line: &str) -> Option<&str> {
    let word = line.split_whitespace().next()?;
    (word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit())).then_some(word)
}

/// What a failed command about files means.
fn file_error(out: &Output) -> SlurmError {
    SlurmError::Refused(out.complaint())
}

#[async_trait]
impl<S: Shell> Files for Text<S> {
    async fn unpack(&self, directory: &str, archive: Bytes) -> Result<(), SlurmError> {
        let d = quote(directory);
        let script = format!("set -e; umask 077; mkdir -p -- {d}; tar -xzf - -C {d} --no-same-owner");
        let out = self.shell.exec(&script, archive, MOVE).await?;
        if out.code == 0 { Ok(()) } else { Err(file_error(&out)) }
    }

    async fn copy(&self, from: &str, to: &str) -> Result<(), SlurmError> {
        let script = format!("mkdir -p -- {0} && cp -RP -- {1}/. {0}/", quote(to), quote(from));
        let out = self.shell.exec(&script, Bytes::new(), MOVE).await?;
        if out.code == 0 { Ok(()) } else { Err(file_error(&out)) }
    }

    async fn list(&self, directory: &str, most: usize) -> Result<Vec<Entry>, SlurmError> {
        let script = format!(
            "cd -- {} && find . -xdev -path ./{} -prune -o -type f -printf '%s %T@ %P\\0' | head -z -n {most}",
            quote(directory),
            crate::script::OWN
        );
        let out = self.shell.exec(&script, Bytes::new(), QUICK).await?;
        if out.code != 0 {
            return Err(file_error(&out));
        }
        let read = |entry: &[u8]| {
            // A path that is no text cannot be asked for either.
            let mut f = std::str::from_utf8(entry).ok()?.splitn(3, ' ');
            let (size, modified, path) = (f.next()?.parse().ok()?, f.next()?, f.next()?.to_owned());
            let modified = modified.split('.').next()?.parse().ok()?;
            Some(Entry { path, size, modified })
        };
        Ok(out.stdout.split(|b| *b == 0).filter_map(read).collect())
    }

    async fn read(&self, path: &str, offset: u64, most: u64) -> Result<Bytes, SlurmError> {
        let p = quote(path);
        let dd = format!("dd if={p} bs=65536 iflag=skip_bytes,count_bytes skip={offset} count={most} status=none");
        let out = self.shell.exec(&format!("[ -f {p} ] || exit 0; exec {dd}"), Bytes::new(), QUICK).await?;
        // An offset beyond the end is the end.
        if out.code == 0 || out.stdout.is_empty() && out.complaint().contains("cannot skip") {
            return Ok(out.stdout);
        }
        Err(file_error(&out))
    }

    async fn read_all(&self, paths: &[&str], most: u64) -> Result<Bytes, SlurmError> {
        let all = paths.iter().map(|p| quote(p)).collect::<Vec<_>>().join(" ");
        let out = self.shell.exec(&format!("cat -- {all} | head -c {most}"), Bytes::new(), MOVE).await?;
        Ok(out.stdout)
    }

    async fn fetch(
        &self,
        path: &str,
        offset: u64,
        most: u64,
        whole: bool,
        to: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<Came, SlurmError> {
        let file = quote(path);
        let dd = format!("dd if={file} bs=1M iflag=skip_bytes,count_bytes skip={offset} count={most} status=none");
        let script = if whole {
            // Beside it: what one of them read from the disk the other finds in memory.
            format!("{DIGEST}digest {file} >&2 &\n{dd} || exit 1\nwait $! || exit 1\n")
        } else {
            format!("exec {dd}")
        };
        let limit = MOVE + Duration::from_secs(most >> 20);
        let out = self.shell.stream(&script, to, limit).await?;
        if out.code != 0 {
            return Err(SlurmError::Refused(format!("{path} cannot be read")));
        }
        let said = String::from_utf8_lossy(&out.stderr);
        let sha256 = said.lines().find_map(digest).filter(|_| whole).map(str::to_owned);
        if whole && sha256.is_none() {
            return Err(SlurmError::Garbled(format!("no digest of {path}: {}", said.trim())));
        }
        Ok(Came { bytes: out.count, sha256 })
    }

    fn part(&self) -> u64 {
        if self.shell.narrow() == Some(1) { PARTS.1 } else { PARTS.0 }
    }

    async fn stat(&self, paths: &[String], digested: u64) -> Result<Vec<Option<Fact>>, SlurmError> {
        let each = paths.iter().map(|p| format!("fact {}\n", quote(p)));
        let fact = format!(
            "{DIGEST}fact() {{\n[ -f \"$1\" ] && f=$(stat -c '%s %Y' -- \"$1\" 2>/dev/null) && [ -r \"$1\" ] || {{ echo; return; }}\n\
             [ ${{f% *}} -gt {digested} ] && echo \"$f\" || echo \"$f $(digest \"$1\" 2>/dev/null)\"\n}}\n"
        );
        let script = format!("{fact}{}", each.collect::<String>());
        let out = self.shell.exec(&script, Bytes::new(), MOVE).await?;
        let text = out.text();
        let read = |line: &str| {
            let (size, rest) = line.split_once(' ')?;
            let (modified, sum) = rest.split_once(' ').unwrap_or((rest, ""));
            let (size, modified) = (size.parse().ok()?, modified.parse().ok()?);
            let sha256 = digest(sum).map(str::to_owned);
            (sha256.is_some() || size > digested).then_some(Fact { size, modified, sha256 })
        };
        let all: Vec<_> = text.lines().map(read).collect();
        if all.len() == paths.len() { Ok(all) } else { Err(SlurmError::Garbled(out.complaint())) }
    }

    async fn run(&self, script: &str, limit: Duration) -> Result<Output, SlurmError> {
        let seconds = limit.as_secs().max(1);
        let bounded = format!("exec timeout -k 5 {seconds} bash -s");
        self.shell.exec(&bounded, Bytes::from(script.to_owned()), limit + Duration::from_secs(10)).await
    }

    async fn remove(&self, paths: &[String]) -> Result<(), SlurmError> {
        let all = paths.iter().map(|p| quote(p)).collect::<Vec<_>>().join(" ");
        let out = self.shell.exec(&format!("rm -rf -- {all}"), Bytes::new(), MOVE).await?;
        if out.code == 0 { Ok(()) } else { Err(file_error(&out)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::local::Local;

    fn here(dir: &std::path::Path) -> Text<Local> {
        Text::new(Local::default(), None, None, &dir.display().to_string(), None)
    }

    #[tokio::test]
    async fn files_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let text = here(dir.path());
        let at = |p: &str| dir.path().join(p).display().to_string();
        std::fs::create_dir_all(at("job/.skiff")).unwrap();
        std::fs::create_dir_all(at("job/sub")).unwrap();
        std::fs::write(at("job/.skiff/out.1"), "ours").unwrap();
        std::fs::write(at("job/sub/a 'b'\n$(c)"), "0123456789").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("job/link")).unwrap();
        let all = text.list(&at("job"), 100).await.unwrap();
        assert_eq!(all.len(), 1, "neither our own nor what links lead to: {all:?}");
        assert_eq!((all[0].path.as_str(), all[0].size), ("sub/a 'b'\n$(c)", 10));
        let path = at(&format!("job/{}", all[0].path));
        assert_eq!(text.read(&path, 4, 3).await.unwrap(), "456");
        assert_eq!(text.read(&path, 40, 3).await.unwrap(), "");
        assert_eq!(text.read(&at("none"), 0, 3).await.unwrap(), "");
        assert_eq!(text.read_all(&[&path, &at("none"), &path], 15).await.unwrap(), "012345678901234");
        let mut got = vec![];
        let want = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
        assert_eq!(text.fetch(&path, 7, 100, false, &mut got).await.unwrap(), Came { bytes: 3, sha256: None });
        assert_eq!(
            text.fetch(&path, 2, 1, true, &mut got).await.unwrap(),
            Came { bytes: 1, sha256: Some(want.into()) }
        );
        assert_eq!(got, b"7892");
        assert!(matches!(text.fetch(&at("none"), 0, 1, true, &mut got).await, Err(SlurmError::Refused(_))));
        let stats = text.stat(&[path.clone(), at("none"), at("job")], 10).await.unwrap();
        assert_eq!(stats.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
        let stat = stats[0].clone().unwrap();
        assert_eq!((stat.size, stat.sha256.as_deref()), (10, Some(want)));
        let large = text.stat(std::slice::from_ref(&path), 9).await.unwrap()[0].clone().unwrap();
        assert_eq!(large, Fact { sha256: None, ..stat });
        text.copy(&at("job"), &at("copy")).await.unwrap();
        assert!(std::fs::symlink_metadata(at("copy/link")).unwrap().is_symlink());
        text.remove(&[at("job"), at("never was")]).await.unwrap();
        assert!(!std::path::Path::new(&at("job")).exists());
    }
}
