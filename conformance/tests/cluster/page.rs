//! Commands of a page of docs, run as they stand there.
//!
//! A block ```` ```console tested ```` holds commands after `$ `, each with the lines after `> ` that continue it and the
//! lines that its output must have, in that order; `...` in a line stands for anything. Each section (`## `) has a namespace
//! of its own, which is the context's. A command that only looks is repeated until it shows what is written; any other runs
//! once and must succeed, unless an error is what is written.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use crate::cluster::{Cluster, Output, repository};

/// How a tested block begins.
const FENCE: &str = "```console tested";

/// A command and what it shows.
#[derive(Debug, Default, PartialEq)]
struct Step {
    command: String,
    shows: Vec<String>,
}

/// Sections with tested commands, by title.
fn sections(page: &str) -> Result<Vec<(String, Vec<Step>)>> {
    let mut all: Vec<(String, Vec<Step>)> = Vec::new();
    let mut within = false;
    for line in page.lines() {
        match (within, line) {
            (false, l) if l.starts_with("## ") => all.push((l[3..].to_owned(), vec![])),
            (false, FENCE) => within = true,
            (true, "```") => within = false,
            (true, l) => {
                let steps = &mut all.last_mut().context("a block before the first section")?.1;
                if let Some(command) = l.strip_prefix("$ ") {
                    steps.push(Step { command: command.to_owned(), shows: vec![] });
                    continue;
                }
                let step = steps.last_mut().with_context(|| format!("no command before {l:?}"))?;
                match l.strip_prefix("> ") {
                    Some(more) => step.command.extend(["\n", more]),
                    None => step.shows.push(l.to_owned()),
                }
            }
            _ => {}
        }
    }
    ensure!(!within, "a block does not end");
    all.retain(|(_, steps)| !steps.is_empty());
    Ok(all)
}

/// The pattern of a line: spaces are as many as they like, `...` is anything.
fn pattern(line: &str) -> Result<Regex> {
    let words: Vec<String> =
        line.split_whitespace().map(|w| w.split("...").map(regex::escape).collect::<Vec<_>>().join(".*")).collect();
    Ok(Regex::new(&format!("^\\s*{}\\s*$", words.join("\\s+").replace("\\s+.*\\s+", "\\s.*")))?)
}

/// The first line that the output lacks.
fn missing<'a>(shows: &'a [String], output: &str) -> Result<Option<&'a str>> {
    let mut lines = output.lines();
    for want in shows.iter().filter(|l| !l.trim().is_empty() && l.trim() != "...") {
        let pattern = pattern(want)?;
        if !lines.any(|l| pattern.is_match(l)) {
            return Ok(Some(want));
        }
    }
    Ok(None)
}

/// Commands of kubectl, and of its plugins, that change nothing.
const LOOKS: [&str; 10] = ["get", "describe", "logs", "top", "exec", "events", "wait", "explain", "auth", "cfg"];
const PLUGINS_LOOK: [&str; 9] =
    ["list", "describe", "logs", "history", "graph", "lint", "files", "partitions", "script"];

/// Whether a command changes nothing, so that it may be repeated.
fn looks(command: &str) -> bool {
    let mut words = command.split_whitespace();
    match (words.next(), words.next()) {
        (Some("curl"), _) => true,
        (Some("kubectl"), Some("func" | "gpu" | "wf")) => words.next().is_some_and(|w| PLUGINS_LOOK.contains(&w)),
        (Some("kubectl"), Some(word)) => LOOKS.contains(&word) && !command.contains("cfg sched="),
        _ => false,
    }
}

fn fails(step: &Step) -> bool {
    let begins = ["error:", "Error from server", "skiff: "];
    step.shows.iter().any(|l| begins.iter().any(|b| l.starts_with(b)) || l.contains(" is invalid: "))
}

fn play(c: &Cluster, dir: &Path, ns: &str, step: &Step) -> Result<()> {
    let run = || -> Result<(Output, String)> {
        let o = crate::cluster::run(c.workplace(dir, ns)?.args(["-c", &step.command]))?;
        let text = format!("{}{}", o.out, o.err);
        Ok((o, text))
    };
    let judge = |o: &Output, text: &str| -> Result<Option<String>> {
        if (o.code == 0) == fails(step) {
            return Ok(Some(format!("it ended with {}", o.code)));
        }
        Ok(missing(&step.shows, text)?.map(|line| format!("it did not show {line:?}")))
    };
    let mut last = String::new();
    let mut fault = None;
    if looks(&step.command) {
        let done = c.eventually("a command shows what is written", |_| {
            let (o, text) = run()?;
            (fault, last) = (judge(&o, &text)?, text);
            Ok(fault.is_none())
        });
        if fault.is_none() {
            done?;
        }
    } else {
        let (o, text) = run()?;
        (fault, last) = (judge(&o, &text)?, text);
    }
    match fault {
        None => Ok(()),
        Some(why) => anyhow::bail!("$ {}\n{why}:\n{last}", step.command),
    }
}

/// Every tested command of a page; how many sections have some.
pub(crate) fn play_page(c: &mut Cluster, name: &str) -> Result<usize> {
    syntax()?;
    let page = std::fs::read_to_string(repository().join("docs").join(format!("{name}.md")))?;
    let sections = sections(&page)?;
    let mut faults = String::new();
    for (n, (title, steps)) in sections.iter().enumerate() {
        let ns = format!("{name}-{n}");
        let dir = tempfile::tempdir()?;
        c.namespace(&ns)?;
        let begun = std::time::Instant::now();
        let result = steps.iter().try_for_each(|step| play(c, dir.path(), &ns, step));
        c.forget(&ns);
        println!("     {title}: {} commands ({:.1} s)", steps.len(), begun.elapsed().as_secs_f64());
        if let Err(e) = result {
            faults.push_str(&format!("\nsection {title:?}: {e:#}"));
        }
    }
    ensure!(faults.is_empty(), "{faults}");
    Ok(sections.len())
}

/// That the judge judges: this target has no unit tests of its own.
fn syntax() -> Result<()> {
    let page = "## One\n```console tested\n$ a <<END\n> b\n> END\nx ... z\n\n$ c\n```\n```console\n$ d\n```\n## Two\n";
    let step = |command: &str, shows: &[&str]| Step {
        command: command.into(),
        shows: shows.iter().map(|s| (*s).to_owned()).collect(),
    };
    let want = vec![("One".to_owned(), vec![step("a <<END\nb\nEND", &["x ... z", ""]), step("c", &[])])];
    ensure!(sections(page)? == want, "{:?}", sections(page)?);
    for (line, output, matches) in [
        ("web   1/1 ... node1", "web  1/1   Running 0  1s node1  ", true),
        ("a...c", "abbc", true),
        ("a ... c", "a c", true),
        ("a b", "a b c", false),
        ("a.b", "axb", false),
    ] {
        ensure!(pattern(line)?.is_match(output) == matches, "{line:?} {output:?}");
    }
    let shows = ["one".to_owned(), "two".to_owned()];
    ensure!(missing(&shows, "zero\none\ntwo")?.is_none() && missing(&shows, "two\none")? == Some("two"));
    Ok(())
}
