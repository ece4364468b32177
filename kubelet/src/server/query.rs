//! Query strings.

/// Parameters in order, decoded. A name may come several times.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Splits and decodes.
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of a name.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    /// Whether a flag is set. The kubelet's own form is `input=1`, the API's `stdin=true`.
    pub(crate) fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|n| matches!(self.get(n), Some("1" | "true" | "True" | "TRUE" | "t")))
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_keep_order_and_special_characters() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%26b%3D%25+c&stdin=true&tty=0&bad=%zz&=");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a&b=% c"]);
        assert!(query.flag(&["input", "stdin"]) && !query.flag(&["tty"]));
        assert_eq!(query.get("bad"), Some("%zz"));
    }
}
