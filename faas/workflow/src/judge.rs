//! Whether a definition can run here: what the language says, and whether anything here does the work of its tasks.

use serde_json::Value;
use skiff_asl::{Definition, Fault, Severity, check, fault};

use crate::resource::Resource;

/// A definition (an object, or text of JSON or YAML) with all its faults; without the definition where one is an error.
#[must_use]
pub fn judge(definition: &Value) -> (Option<Definition>, Vec<Fault>) {
    let (read, mut faults) = match definition {
        Value::String(text) => check::text(text),
        other => check::definition(other),
    };
    let Some(read) = read else { return (None, faults) };
    let before = faults.len();
    for (path, resource) in read.resources() {
        if let Err(why) = Resource::parse(resource) {
            faults.push(Fault::error(fault::INVALID_RESOURCE, path, why));
        }
    }
    if faults.len() > before { (None, faults) } else { (Some(read), faults) }
}

/// The faults that refuse a definition, each with its place.
#[must_use]
pub fn errors(faults: &[Fault]) -> Vec<String> {
    faults.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nothing_here_does_is_a_fault_with_its_path() {
        let task = |resource: &str| json!({"StartAt": "A", "States": {"A": {"Type": "Task", "Resource": resource, "End": true}}});
        let (read, faults) = judge(&task("skiff:function:f"));
        assert!(read.is_some() && errors(&faults).is_empty(), "{faults:?}");
        let (read, faults) = judge(&Value::String(task("arn:aws:states:::aws-sdk:s3:listBuckets").to_string()));
        assert!(read.is_none());
        assert!(errors(&faults)[0].starts_with("/States/A/Resource: "), "{faults:?}");
    }
}
