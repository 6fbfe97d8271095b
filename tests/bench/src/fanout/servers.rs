//! The two servers: Weir, and nginx with nchan.

use anyhow::{Context, Result};

use super::load::Dialect;
use super::plan::{Options, absolute};
use crate::http::Form;
use crate::server::Spec;

pub(super) struct Server {
    pub(super) spec: Spec,
    pub(super) dialect: Dialect,
    /// The command line, for the report.
    pub(super) shown: String,
}

/// The settings of `weir serve` besides its defaults: bounds for many subscribers of one user.
const WEIR: [&str; 13] = [
    "models.replicas=1",
    "http.connections_max=20000",
    "http.requests_max=20000",
    "http.client_share_percent=100",
    "gateway.instance_requests_max=1024",
    "events.subscribers_max=100000",
    "auth.connections_max=100000",
    "auth.requests_per_s=100000",
    "auth.requests_burst=100000",
    "auth.publishes_per_s=100000",
    "auth.publishes_burst=100000",
    "http.request_timeout_ms=600000",
    "http.write_timeout_ms=60000",
];

/// One worker, no log, the same retention as Weir (`events.events_max`, `events.age_ms_max`), a comment every 15 s as
/// Weir sends (`events.heartbeat_ms`).
const NGINX: &str = r#"load_module {folder}/module.so;
daemon off;
user {user};
worker_processes 1;
worker_rlimit_nofile 20000;
pid {work}/nginx.pid;
error_log stderr warn;
events { worker_connections 19000; }
http {
    access_log off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    keepalive_requests 100000000;
    keepalive_timeout 3600s;
    nchan_shared_memory_size 256M;
    server {
        listen 127.0.0.1:@PORT@ backlog=4096;
        location = /readyz { return 200; }
        location ~ ^/pub/(.+)$ {
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 1000;
            nchan_message_timeout 1h;
        }
        location ~ ^/sub/(.+)$ {
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval 15;
        }
    }
}
"#;

pub(super) fn all(options: &Options) -> Result<Vec<Server>> {
    std::fs::create_dir_all(&options.work).with_context(|| format!("cannot make {}", options.work.display()))?;
    let mut servers = vec![weir(options)?];
    if let Some(folder) = &options.nginx {
        servers.push(nchan(options, folder)?);
    }
    Ok(servers)
}

fn weir(options: &Options) -> Result<Server> {
    let mut command = vec![absolute(&options.weir)?.display().to_string(), "serve".to_owned()];
    let mut shown = "weir serve".to_owned();
    for set in WEIR {
        command.extend(["--set".to_owned(), set.to_owned()]);
        shown.push_str(&format!(" --set {set}"));
    }
    command.extend(options.weir_arg.iter().cloned());
    options.weir_arg.iter().for_each(|more| shown.push_str(&format!(" {more}")));
    command.extend(["--listen".to_owned(), "127.0.0.1:{port}".to_owned()]);
    Ok(Server { spec: spec("weir", "Weir", command, "/v1/classify"), dialect: Dialect::Weir, shown })
}

fn nchan(options: &Options, folder: &std::path::Path) -> Result<Server> {
    let (folder, work) = (absolute(folder)?, absolute(&options.work)?.join("nginx"));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let fill = |text: &str, folder: &str, work: &str| {
        text.replace("{folder}", folder).replace("{work}", work).replace("{user}", &user)
    };
    let template = work.join("nginx.conf.in");
    std::fs::write(&template, fill(NGINX, &folder.display().to_string(), &work.display().to_string()))?;
    // The port is known when it starts.
    let script =
        r#"sed "s/@PORT@/$1/" "$2/nginx.conf.in" > "$2/nginx.conf" && exec "$3/nginx" -p "$2" -c "$2/nginx.conf""#;
    let words = ["sh", "-c", script, "sh", "{port}"].map(str::to_owned).into_iter();
    let command = words.chain([work.display().to_string(), folder.display().to_string()]).collect();
    let shown = format!("nginx -c nginx.conf, which is:\n\n{}", fill(NGINX, "…", "…").replace("@PORT@", "8080"));
    Ok(Server { spec: spec("nchan", "nginx + nchan", command, "/readyz"), dialect: Dialect::Nchan, shown })
}

fn spec(name: &str, title: &str, command: Vec<String>, path: &str) -> Spec {
    Spec {
        name: name.to_owned(),
        title: title.to_owned(),
        command,
        environment: Vec::new(),
        path: path.to_owned(),
        form: Form::Inputs,
        headers: Vec::new(),
        streams: false,
        engine: None,
        difference_max: 0.0,
        together_max: 0.0,
    }
}
