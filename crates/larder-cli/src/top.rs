//! `larder top`.

use std::{
    io::IsTerminal as _,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Paragraph, Row, Sparkline, Table},
};
use serde_json::Value;

use crate::{
    admin_client::AdminClient,
    error::CliError,
    stats::{CACHE_TITLES, ROUTE_TITLES, caches, levels, routes},
    text::{bytes, count, number, percent, time},
};

/// The sums of all caches.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    served: u64,
    misses: u64,
    bypassed: u64,
    micros: u64,
    queries: u64,
    bytes: u64,
}

/// The contents of the screen.
#[derive(Debug, Default)]
struct Screen {
    stats: Value,
    before: Option<(Instant, Totals)>,
    summary: String,
    requests: Vec<u64>,
}

pub(crate) fn run(client: &AdminClient) -> Result<(), CliError> {
    if !std::io::stdout().is_terminal() {
        return Err(CliError::usage(
            "top needs a terminal; allowed without one are stats and tail",
        ));
    }
    // A wrong token is said on the command line, and not on the screen.
    client.get("api/whoami", &[])?;
    let mut terminal = ratatui::init();
    let ended = shown(client, &mut terminal);
    ratatui::restore();
    ended
}

fn shown(client: &AdminClient, terminal: &mut DefaultTerminal) -> Result<(), CliError> {
    let (send, receive) = mpsc::channel();
    let client = client.clone();
    // Nothing waits for this thread, which may wait for the server.
    std::thread::spawn(move || {
        let sent = client.live(|event| Ok(send.send(Ok(event.data)).is_ok()));
        if let Err(error) = sent {
            drop(send.send(Err(error)));
        }
    });
    let mut screen = Screen::default();
    terminal.draw(|frame| screen.draw(frame))?;
    loop {
        if event::poll(Duration::from_millis(50))? {
            if is_end(&event::read()?) {
                return Ok(());
            }
            terminal.draw(|frame| screen.draw(frame))?;
        }
        match receive.recv_timeout(Duration::from_millis(50)) {
            Ok(Ok(event)) => {
                screen.update(event["stats"].clone());
                terminal.draw(|frame| screen.draw(frame))?;
            }
            Ok(Err(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Whether the key is `q`, Escape or Ctrl-C.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_interrupt =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

impl Totals {
    fn of(stats: &Value) -> Self {
        let mut sum = Self::default();
        for cache in stats["caches"].as_array().into_iter().flatten() {
            let (it, saved) = (&cache["total"], &cache["total"]["saved"]);
            sum.served +=
                ["hits", "stale_hits", "collapsed"].iter().map(|key| count(&it[key])).sum::<u64>();
            sum.misses += count(&it["misses"]);
            sum.bypassed += count(&it["bypassed"]);
            sum.micros += count(&saved["micros"]);
            sum.queries += count(&saved["queries"]);
            sum.bytes += count(&saved["bytes"]);
        }
        sum
    }
}

impl Screen {
    fn update(&mut self, stats: Value) {
        let (at, now) = (Instant::now(), Totals::of(&stats));
        if let Some((since, before)) = self.before {
            let seconds = at.duration_since(since).as_secs_f64().max(0.2);
            let rate =
                |of: fn(&Totals) -> u64| of(&now).saturating_sub(of(&before)) as f64 / seconds;
            let (served, misses) = (rate(|it| it.served), rate(|it| it.misses));
            let requests = served + misses + rate(|it| it.bypassed);
            let ratio = if served + misses > 0.0 {
                percent(served / (served + misses))
            } else {
                "–".to_owned()
            };
            self.summary = format!(
                "{} requests/s   hit ratio {ratio}   saved {} of fills, {} queries and {} each second",
                number(requests.round() as u64),
                time(rate(|it| it.micros) / 1e6),
                number(rate(|it| it.queries).round() as u64),
                bytes(rate(|it| it.bytes) as u64),
            );
            self.requests.push(requests.round() as u64);
        }
        (self.before, self.stats) = (Some((at, now)), stats);
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let (levels, caches, routes) =
            (levels(&self.stats), caches(&self.stats, "last_minute"), routes(&self.stats));
        let height = |rows: usize| Constraint::Length(u16::try_from(rows).unwrap_or(u16::MAX));
        let areas = Layout::vertical([
            height(1),
            height(4),
            height(levels.len() + 1),
            height(caches.len() + 3),
            Constraint::Min(3),
            height(1),
        ])
        .split(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Line::styled(self.summary.clone(), bold), areas[0]);
        let width = usize::from(areas[1].width);
        let last = &self.requests[self.requests.len().saturating_sub(width)..];
        let requests =
            Sparkline::default().data(last.to_vec()).block(Block::new().title("requests/s"));
        frame.render_widget(requests, areas[1]);
        frame.render_widget(Paragraph::new(levels.join("\n")), areas[2]);
        let mut table =
            |title: &'static str, titles: &[&'static str], rows: Vec<Vec<String>>, area| {
                let widths = (0..titles.len()).map(|column| {
                    let cells = rows.iter().map(|row| row[column].chars().count());
                    let widest = cells.chain([titles[column].trim_end().chars().count()]).max();
                    height(widest.unwrap_or_default())
                });
                let widths: Vec<Constraint> = widths.collect();
                let header = Row::new(titles.iter().map(|title| title.trim_end())).style(bold);
                let table = Table::new(rows.into_iter().map(Row::new), widths)
                    .header(header)
                    .column_spacing(2);
                frame.render_widget(table.block(Block::new().title(title)), area);
            };
        table("Caches, last minute", &CACHE_TITLES, caches, areas[3]);
        table("Routes, since the start", &ROUTE_TITLES, routes, areas[4]);
        frame.render_widget(Line::raw("q ends"), areas[5]);
    }
}
