//! Pyroscope's ingest API: pprof as it is, in a form, with what it is called in the query.
//! <https://grafana.com/docs/pyroscope/latest/reference-server-api/>

use std::collections::BTreeMap;

use super::{Post, PushedProfile};

/// How the values are shown: what was allocated adds up over time, what is held does not.
const SAMPLE_TYPES: &str = r#"{"alloc_objects":{"units":"objects","aggregation":"sum"},"alloc_space":{"units":"bytes","aggregation":"sum"},"inuse_objects":{"units":"objects","aggregation":"average"},"inuse_space":{"units":"bytes","aggregation":"average"}}"#;

/// The request for one report.
pub fn request(url: &str, pushed: &PushedProfile, pprof: &[u8]) -> Post {
    let boundary = boundary(pprof);
    // Without a format in the query the form says what it is.
    let url = format!(
        "{url}{}?name={}&from={}&until={}&spyName=tracer",
        if url.ends_with("/ingest") { "" } else { "/ingest" },
        encoded(&name(&pushed.service, &pushed.labels)),
        pushed.from,
        pushed.until,
    );
    let mut body = Vec::with_capacity(pprof.len() + 1024);
    let parts = [
        ("profile", "profile.pprof", pprof),
        ("sample_type_config", "sample_type_config.json", SAMPLE_TYPES.as_bytes()),
    ];
    for (field, file, content) in parts {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend([head.as_bytes(), content, b"\r\n"].concat());
    }
    body.extend(format!("--{boundary}--\r\n").into_bytes());
    Post { url, headers: vec![("content-type", format!("multipart/form-data; boundary={boundary}"))], body }
}

/// A line that is not in the content.
fn boundary(content: &[u8]) -> String {
    let is_in = |line: &String| memchr::memmem::find(content, line.as_bytes()).is_some();
    let lines = (0_u64..).map(|number| format!("tracer-{number:016x}"));
    lines.into_iter().find(|line| !is_in(line)).unwrap_or_default()
}

/// `service{key=value,…}`. There is no way to quote what separates the parts, so that is left out.
fn name(service: &str, labels: &BTreeMap<String, String>) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|letter| if letter.is_control() || "{}=,".contains(letter) { '_' } else { letter })
            .collect()
    };
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
    format!("{}{{{}}}", plain(service), labels.join(","))
}

/// For a query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_form_with_its_name_in_the_query() {
        let labels = [("namespace", "shop"), ("odd", "a=b,{c}\n")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let pushed = PushedProfile {
            name: "x".into(),
            service: "shop/web-0/größe".into(),
            labels,
            from: 10,
            until: 20,
        };
        let Post { url, headers, body } =
            request("http://p:4040/base", &pushed, b"\x1f\x8btracer-0000000000000000");
        assert_eq!(
            url,
            "http://p:4040/base/ingest?name=shop%2Fweb-0%2Fgr%C3%B6%C3%9Fe%7Bnamespace%3Dshop%2Codd%3Da_b__c__%7D\
             &from=10&until=20&spyName=tracer"
        );
        let boundary = "tracer-0000000000000001";
        assert_eq!(headers, [("content-type", format!("multipart/form-data; boundary={boundary}"))]);
        let text = String::from_utf8_lossy(&body);
        assert_eq!(text.matches(boundary).count(), 3);
        assert!(text.contains("name=\"profile\"; filename=\"profile.pprof\"") && text.ends_with("--\r\n"));
        assert!(serde_json::from_str::<serde_json::Value>(SAMPLE_TYPES).is_ok());
        assert!(request("http://p/ingest", &pushed, b"").url.starts_with("http://p/ingest?"));
    }
}
