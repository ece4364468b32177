//! Names as the service's clients know them. The account of an ARN stands for the namespace.

use crate::pack::digest;

/// The region of ARNs that are not made for a caller.
pub const REGION: &str = "skiff";

/// The account that stands for a namespace: twelve digits.
#[must_use]
pub fn account(namespace: &str) -> String {
    let digits = digest(format!("account/{namespace}").as_bytes());
    let number = u64::from_str_radix(digits.get(..15).unwrap_or_default(), 16).unwrap_or_default();
    format!("{:012}", number % 1_000_000_000_000)
}

/// The ARN of a workflow.
#[must_use]
pub fn machine(namespace: &str, workflow: &str) -> String {
    format!("arn:aws:states:{REGION}:{}:stateMachine:{workflow}", account(namespace))
}

/// The ARN of a run.
#[must_use]
pub fn execution(namespace: &str, workflow: &str, name: &str) -> String {
    format!("arn:aws:states:{REGION}:{}:execution:{workflow}:{name}", account(namespace))
}

/// The ARN of a run of a distributed map.
#[must_use]
pub fn map_run(namespace: &str, workflow: &str, label: &str, name: &str) -> String {
    format!("arn:aws:states:{REGION}:{}:mapRun:{workflow}/{label}:{name}", account(namespace))
}

/// What an ARN of a state machine names, with its version or alias; other text names itself.
#[must_use]
pub fn name(arn: &str) -> &str {
    match arn.splitn(7, ':').collect::<Vec<_>>().as_slice() {
        ["arn", _, "states", _, _, "stateMachine", name] => name,
        _ => arn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_name_what_they_are_made_of() {
        let arn = machine("shop", "orders");
        assert_eq!(name(&arn), "orders");
        assert_eq!(name(&format!("{arn}:3")), "orders:3");
        assert_eq!(name("orders"), "orders");
        assert!(account("a").len() == 12 && account("a") != account("b"));
    }
}
