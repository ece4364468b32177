//! Batch scripts of people: their `#SBATCH` lines as fields of ours.

use anyhow::{Context as _, bail};

use crate::api::{Array, Dependency, DependencyType, GpuJobSpec, GpuRequest, GpuScope, Resources, Run, SignalBefore};

/// A job of a script, with what people must know about the change.
///
/// # Errors
/// When a line of it cannot be read.
pub(super) fn job(text: &str) -> anyhow::Result<(GpuJobSpec, Option<String>, Vec<String>)> {
    let mut reader = Reader::default();
    let mut words = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("#SBATCH") {
            words.extend(split(rest).with_context(|| format!("line {}: {line}", number + 1))?);
        } else if !line.starts_with('#') && !line.trim().is_empty() {
            break;
        }
    }
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (name, mut value) = match word.strip_prefix("--") {
            Some(long) => match long.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (long.to_owned(), None),
            },
            None => {
                let mut chars = word.strip_prefix('-').with_context(|| format!("{word}: no option of sbatch"))?.chars();
                let letter = chars.next().unwrap_or_default();
                let name =
                    SHORT.iter().find(|s| s.0 == letter).with_context(|| format!("-{letter}: not known here"))?.1;
                (name.to_owned(), Some(chars.collect::<String>()).filter(|v| !v.is_empty()))
            }
        };
        if value.is_none() && !FLAGS.contains(&name.as_str()) {
            value = Some(words.next().with_context(|| format!("--{name} has no value"))?);
        }
        reader.option(&name, value.as_deref().unwrap_or_default())?;
    }
    let Reader { mut spec, resources, name, notes } = reader;
    // The lines are options of ours now; in the script they would only mislead.
    let body: Vec<&str> = text.lines().filter(|l| !l.starts_with("#SBATCH")).collect();
    spec.run = Run { script: Some(body.join("\n") + "\n"), ..Run::default() };
    if resources != Resources::default() {
        spec.resources = Some(resources);
    }
    Ok((spec, name, notes))
}

const SHORT: [(char, &str); 20] = [
    ('J', "job-name"),
    ('p', "partition"),
    ('N', "nodes"),
    ('n', "ntasks"),
    ('c', "cpus-per-task"),
    ('t', "time"),
    ('o', "output"),
    ('e', "error"),
    ('i', "input"),
    ('D', "chdir"),
    ('d', "dependency"),
    ('a', "array"),
    ('A', "account"),
    ('q', "qos"),
    ('C', "constraint"),
    ('w', "nodelist"),
    ('x', "exclude"),
    ('G', "gpus"),
    ('H', "hold"),
    ('L', "licenses"),
];

/// Options without a value.
const FLAGS: [&str; 7] = ["exclusive", "requeue", "no-requeue", "hold", "contiguous", "overcommit", "oversubscribe"];

#[derive(Default)]
struct Reader {
    spec: GpuJobSpec,
    resources: Resources,
    name: Option<String>,
    notes: Vec<String>,
}

impl Reader {
    fn option(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let r = &mut self.resources;
        let number = || value.parse::<u32>().with_context(|| format!("--{name}={value}: not a number"));
        let text = || Some(value.to_owned());
        match name {
            "job-name" => self.name = text(),
            "partition" => r.partition = text(),
            "nodes" => match value.split_once('-') {
                Some((least, most)) => (r.nodes, r.max_nodes) = (least.parse().ok(), most.parse().ok()),
                None => r.nodes = Some(number()?),
            },
            "ntasks" => r.tasks = Some(number()?),
            "ntasks-per-node" => r.tasks_per_node = Some(number()?),
            "cpus-per-task" => r.cpus_per_task = Some(number()?),
            "cpus-per-gpu" => r.cpus_per_gpu = Some(number()?),
            "mem" => r.memory = text(),
            "mem-per-cpu" => r.memory_per_cpu = text(),
            "mem-per-gpu" => r.memory_per_gpu = text(),
            "time" => r.time = text(),
            "qos" => r.qos = text(),
            "account" => r.account = text(),
            "constraint" => r.constraint = text(),
            "reservation" => r.reservation = text(),
            "nodelist" => r.node_list = text(),
            "exclude" => r.exclude = text(),
            "exclusive" if value.is_empty() => r.exclusive = true,
            "requeue" => r.requeue = Some(true),
            "no-requeue" => r.requeue = Some(false),
            "hold" => self.spec.suspend = true,
            "gres" => {
                for item in value.split(',') {
                    match gpu(item) {
                        Some(gpu) => r.gpus.push(gpu),
                        None => r.gres.push(item.to_owned()),
                    }
                }
            }
            "gpus" | "gpus-per-node" | "gpus-per-task" | "gpus-per-socket" => {
                let per = match name {
                    "gpus" => GpuScope::Job,
                    "gpus-per-task" => GpuScope::Task,
                    "gpus-per-socket" => GpuScope::Socket,
                    _ => GpuScope::Node,
                };
                for item in value.split(',') {
                    let request =
                        gpu(&format!("gpu:{item}")).with_context(|| format!("--{name}={value}: no number of GPUs"))?;
                    r.gpus.push(GpuRequest { per, ..request });
                }
            }
            "array" => {
                let (tasks, limit) = value.split_once('%').map_or((value, None), |(t, l)| (t, l.parse().ok()));
                r.array = Some(Array { tasks: tasks.to_owned(), limit });
            }
            "signal" => {
                let (steps, rest) = value.strip_prefix("B:").map_or((true, value), |v| (false, v));
                let (name, seconds) = rest.split_once('@').map_or((rest, None), |(n, s)| (n, s.parse().ok()));
                let name = name.trim_start_matches("SIG").to_owned();
                r.signal = Some(SignalBefore { name, seconds, steps });
            }
            "output" => self.spec.output_file = self.file(name, value),
            "error" => self.spec.error_file = self.file(name, value),
            "dependency" if value == "singleton" => {
                self.spec.dependencies.push(Dependency { kind: DependencyType::Singleton, job: None });
            }
            "dependency" => self.notes.push(format!(
                "--dependency={value} names jobs by Slurm's numbers: name GpuJobs in spec.dependencies instead"
            )),
            "chdir" => self.notes.push(format!("--chdir={value} is left out: a job has a directory of its own")),
            "input" => self.notes.push(format!("--input={value} is left out: put the text into spec.stdin")),
            "export" => self.notes.push(format!("--export={value} is left out: variables are in spec.env")),
            "mail-type" | "mail-user" | "comment" | "open-mode" | "parsable" => {
                self.notes.push(format!("--{name}={value} is left out"));
            }
            _ if value.is_empty() => r.extra_options.push(format!("--{name}")),
            _ => r.extra_options.push(format!("--{name}={value}")),
        }
        Ok(())
    }

    /// A file of the job's directory.
    fn file(&mut self, option: &str, path: &str) -> Option<String> {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name != path {
            self.notes.push(format!("--{option}={path}: the file is {name} in the job's directory"));
        }
        Some(name.to_owned()).filter(|n| !n.is_empty())
    }
}

/// GPUs of `gpu:2`, `gpu:a100:2`, `gpu`, `gpu:a100`.
pub(super) fn gpu(text: &str) -> Option<GpuRequest> {
    let parts: Vec<&str> = text.split(':').collect();
    let (kind, count) = match parts[..] {
        ["gpu"] => (None, 1),
        ["gpu", one] => match one.parse() {
            Ok(count) => (None, count),
            Err(_) => (Some(one.to_owned()), 1),
        },
        ["gpu", kind, count] => (Some(kind.to_owned()), count.parse().ok()?),
        _ => return None,
    };
    Some(GpuRequest { kind, count, per: GpuScope::Node })
}

/// Words of a line, by blanks and quotes, as sbatch reads them.
fn split(line: &str) -> anyhow::Result<Vec<String>> {
    let (mut out, mut word, mut any, mut quote) = (Vec::new(), String::new(), false, None::<char>);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(q) if c == q => quote = None,
            Some('\'') => word.push(c),
            _ if c == '\\' => {
                any = true;
                word.extend(chars.next());
            }
            Some(_) => word.push(c),
            None if c == '\'' || c == '"' => (quote, any) = (Some(c), true),
            None if c == '#' && !any => break,
            None if c.is_whitespace() => {
                if std::mem::take(&mut any) {
                    out.push(std::mem::take(&mut word));
                }
            }
            None => {
                any = true;
                word.push(c);
            }
        }
    }
    if quote.is_some() {
        bail!("a quote is left open");
    }
    out.extend(any.then_some(word));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_become_fields() {
        let script = "#!/bin/bash\n#SBATCH --job-name=cublas\n#SBATCH -p dgx2 -N 2\n#SBATCH --ntasks-per-node=2 # two\n#SBATCH --cpus-per-task=6\n#SBATCH --gres=gpu:v100:2,shard:1\n#SBATCH -o logs/%j.out\n#SBATCH -t 1-00:00:00\n#SBATCH --array=0-9%3\n#SBATCH --signal=B:USR1@120\n#SBATCH --mail-type=end\n#SBATCH --nice=5 --exclusive\n\nmodule load cuda\n#SBATCH --time=1\n./run\n";
        let (spec, name, notes) = job(script).unwrap();
        assert_eq!(name.as_deref(), Some("cublas"));
        let r = serde_json::to_value(spec.resources).unwrap();
        assert_eq!(
            r,
            json!({"partition": "dgx2", "nodes": 2, "tasksPerNode": 2, "cpusPerTask": 6, "gpus": [{"type": "v100", "count": 2, "per": "Node"}],
                "gres": ["shard:1"], "time": "1-00:00:00", "array": {"tasks": "0-9", "limit": 3}, "exclusive": true,
                "signal": {"name": "USR1", "seconds": 120, "steps": false}, "extraOptions": ["--nice=5"]})
        );
        assert_eq!(spec.output_file.as_deref(), Some("%j.out"));
        assert_eq!(notes.len(), 2, "{notes:?}");
        let body = spec.run.script.unwrap();
        assert!(!body.contains("SBATCH") && body.contains("module load cuda\n./run"), "{body}");
        for wrong in ["#SBATCH -N x", "#SBATCH --gpus=a:b:c", "#SBATCH --comment='x", "#SBATCH word"] {
            assert!(job(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpus_are_read_in_every_form() {
        for (text, kind, count) in
            [("gpu", None, 1), ("gpu:2", None, 2), ("gpu:a100", Some("a100"), 1), ("gpu:a100:4", Some("a100"), 4)]
        {
            let read = gpu(text).unwrap();
            assert_eq!((read.kind.as_deref(), read.count), (kind, count), "{text}");
        }
        assert!(gpu("shard:2").is_none());
    }
}
