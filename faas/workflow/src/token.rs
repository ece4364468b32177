//! Task tokens: they say which step they answer, and carry a secret of the run so that nobody makes them up.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::pack;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Namespace of the run.
    pub namespace: String,
    /// Name of the run.
    pub run: String,
    /// The step: which task, which attempt.
    pub step: String,
    proof: String,
}

impl Token {
    /// The token of a step of a run that knows `secret`.
    #[must_use]
    pub fn new(namespace: &str, run: &str, step: &str, secret: &str) -> Self {
        let proof = pack::digest(format!("{secret}/{namespace}/{run}/{step}").as_bytes());
        let proof = proof.get(..32).unwrap_or_default().to_owned();
        Self { namespace: namespace.to_owned(), run: run.to_owned(), step: step.to_owned(), proof }
    }

    /// Reads a token. Whether it is genuine only the run can say.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let mut parts = text.split('/').map(str::to_owned);
        let token = Self { namespace: parts.next()?, run: parts.next()?, step: parts.next()?, proof: parts.next()? };
        let names = [&token.namespace, &token.run, &token.step, &token.proof];
        (parts.next().is_none() && names.iter().all(|p| !p.is_empty())).then_some(token)
    }

    /// Whether a run with this secret gave it.
    #[must_use]
    pub fn is_genuine(&self, secret: &str) -> bool {
        let genuine = Self::new(&self.namespace, &self.run, &self.step, secret);
        let differences = self.proof.bytes().zip(genuine.proof.bytes()).fold(0, |d, (a, b)| d | (a ^ b));
        self.proof.len() == genuine.proof.len() && differences == 0
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, run, step, proof } = self;
        f.write_str(&URL_SAFE_NO_PAD.encode(format!("{namespace}/{run}/{step}/{proof}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_cannot_be_made_up() {
        let token = Token::new("ns", "run", "7.0", "secret");
        let back = Token::parse(&token.to_string()).unwrap();
        assert_eq!(back, token);
        assert!(back.is_genuine("secret") && !back.is_genuine("another"));
        assert!(!Token { step: "8.0".into(), ..back.clone() }.is_genuine("secret"));
        assert!(!Token { proof: String::new(), ..back }.is_genuine("secret"));
        for bad in ["", "%", "YQ", &URL_SAFE_NO_PAD.encode("a/b/c"), &URL_SAFE_NO_PAD.encode("a/b/c/d/e")] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
