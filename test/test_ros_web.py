# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The page in a real browser: its camera and microphone are the robot's, and the model answers.

Chromium plays a held-out clip as its camera and microphone. Without it (apt install chromium) or
without aiohttp the tests are skipped, which pytest's summary says.
"""

import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage

pytest.importorskip('aiohttp')

from benchmarks.browser import (  # noqa: E402
    CHROMIUM,
    Browser,
    read_scene,
    write_camera,
    write_microphone,
)
from minicpmo_ros.msg import AlertRule, AlertStates, Answer, Speech  # noqa: E402
from minicpmo_ros.srv import AddAlert  # noqa: E402

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason='Chromium is not installed: no page was opened (apt install chromium)'
)
CLIP = Path(__file__).parents[1] / 'demo' / 'clips' / '010.mcap'
SHIFT = 8
# Every text that can be seen, with its ratio of contrast to what is behind it.
CONTRAST = """(() => {
  const rgb = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (c) => [.2126, .7152, .0722].reduce((sum, f, i) => {
    const v = c[i] / 255;
    return sum + f * (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  }, 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!box.width || !(own || e.matches('input')) || e.closest('[hidden]')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + ' ' + e.textContent]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
})()"""
# What a screen reader reads aloud of itself, as often as it is written within three seconds.
TOLD = """new Promise((done) => {
  const told = [], spoken = 'output, [role=status], [role=alert], [aria-live]';
  const observer = new MutationObserver((all) => all.forEach(({ target }) => {
    const place = (target.nodeType === 3 ? target.parentElement : target).closest(spoken);
    if (place && place.ariaLive !== 'off') told.push(place.outerHTML);
  }));
  observer.observe(document.body, { subtree: true, childList: true, characterData: true });
  let drawn = 0;
  const strip = new MutationObserver(() => { if ((drawn += 1) > 6) done(told); });
  strip.observe(document.getElementById('strip'), { childList: true });
})"""
HOOK = """const given = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (what) => (window.stream = await given(what));"""
WIDE = """[...document.body.querySelectorAll('*')].filter(
  (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.thumbs')
).map((e) => e.tagName + ' ' + e.id + ' ' + e.className)"""


class Shown:
    """The graph, the page, and the answers on the topic."""

    def __init__(self, graph, folder):
        images, samples = read_scene(CLIP)
        write_camera(folder / 'camera.y4m', images)
        write_microphone(folder / 'microphone.wav', samples)
        self.graph, self.answers, self.folder = graph, [], folder
        graph.create_subscription(Answer, 'llm/answer', self.answers.append, 10)
        self.live = graph.start('live', '-p', 'model_dir:=nano')
        web = graph.start('web', '-p', 'senses:=true', '-p', 'port:=0', '-p', 'token:=secret')
        found = graph.spin_until(lambda: re.search(r'http://\S+', web.log), 'the address')
        self.web, self.base = web, found[0].partition('?')[0]
        self.browser = Browser(folder, folder / 'camera.y4m', folder / 'microphone.wav')
        self.browser.look(1280, 900, False)
        self.browser.open(found[0])
        graph.wait_ready()
        self.browser.wait('document.getElementById("state").textContent === "Ready"')

    def focus_by_keys(self, name: str, modifiers: int = 0) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(40):
            if self.browser.evaluate('document.activeElement.id') == name:
                return
            self.browser.press('Tab', modifiers)
        raise AssertionError(f'Tab does not lead to {name}')

    def ask(self, question: str) -> Answer:
        """Ask by the keyboard; wait until the page shows the end; return the topic's answer."""
        n = len(self.answers)
        self.focus_by_keys('question', SHIFT)
        self.browser.type(question)
        self.browser.press('Enter')
        self.graph.spin_until(lambda: len(self.answers) > n, 'an answer')
        own = f'.own[data-id={self.answers[n].id}]'
        self.browser.wait(f'document.querySelector("{own}") !== null')
        return self.answers[n]

    def newest(self, what: str):
        """Return something of the newest card."""
        return self.browser.evaluate(f'document.querySelector(".card").{what}')


@pytest.fixture(scope='module')
def shown(shared_graph, tmp_path_factory):
    """Give the page with camera and microphone running, started by the keyboard."""
    shown = Shown(shared_graph, tmp_path_factory.mktemp('browser'))
    try:
        shown.focus_by_keys('senses-start')
        shown.browser.press(' ')
        shared_graph.spin_until(
            lambda: shared_graph.status.units >= 5 and shared_graph.status.image_end.sec,
            'five seconds, some with an image',
        )
        shown.browser.wait('document.querySelectorAll(".second.kept").length >= 4')
        yield shown
    finally:
        shown.browser.close()


def test_camera_and_microphone_of_the_page_become_seconds_of_the_window(shown):
    status = shown.graph.status
    assert status.units >= 4 and not status.units_dropped and status.image_end.sec
    bars = shown.browser.evaluate(
        '[...document.querySelectorAll(".second.kept .image")].map('
        '(e) => Number(e.parentElement.dataset.second))'
    )
    assert len(set(bars) & set(status.seconds)) >= min(3, len(status.seconds))
    shown.browser.wait('document.getElementById("image").naturalWidth === 320')


def test_a_question_by_the_keyboard_is_answered_from_what_the_browser_has_seen(shown):
    answer = shown.ask('who says "red", a man or a woman?')
    assert answer.units >= 4 and answer.image_end.sec and answer.audio_end.sec
    assert shown.newest('querySelector(".text").textContent') == answer.text
    spans = zip(answer.token_begins, answer.token_ends, strict=True)
    assert ''.join(answer.text[begin:end] for begin, end in spans) == answer.text
    chosen = answer.token_log_probabilities
    assert sum(chosen) / len(chosen) == pytest.approx(answer.mean_log_probability, rel=1e-4)
    assert '%' in shown.newest('querySelector(".text span").title')
    told_ms = float(shown.newest('dataset.firstTokenMs'))
    assert abs(told_ms - answer.first_token_ms) < 0.01
    lit = shown.browser.wait(
        '[...document.querySelectorAll(".second.lit")].map((e) => Number(e.dataset.second))'
    )
    assert set(lit) <= set(answer.seconds)
    assert shown.newest('querySelectorAll(".thumbs img").length') >= 3


def test_choices_are_shown_with_their_probabilities(shown):
    shown.focus_by_keys('choices')
    shown.browser.type('man, woman')
    answer = shown.ask('who says "red", a man or a woman?')
    assert shown.newest('querySelectorAll(".shares .bar").length') == 2
    told = shown.newest('querySelector(".shares").innerText')
    assert all(f'{100 * p:.0f} %' in told for p in answer.probabilities)
    shown.browser.evaluate('document.getElementById("choices").value = ""')


def test_what_looks_like_a_script_is_shown_as_text(shown):
    script = (
        '<img src=x onerror="document.title=\'taken\'"><script>document.title="taken"</script>'
    )
    shown.focus_by_keys('choices')
    shown.browser.type(script)
    answer = shown.ask(script)
    assert answer.text == script  # the only choice
    assert shown.newest('querySelector(".text").textContent') == script
    assert shown.newest('querySelector(".question").textContent') == script
    assert shown.newest('querySelectorAll("script, img[src=x]").length') == 0
    assert shown.browser.evaluate('document.title').startswith('minicpmo_ros')
    shown.browser.evaluate('document.getElementById("choices").value = ""')


def test_a_question_that_is_refused_says_so_in_its_own_place(shown):
    shown.focus_by_keys('choices', SHIFT)
    shown.browser.type('x' * 201)
    shown.focus_by_keys('question', SHIFT)
    shown.browser.type('which one?')
    shown.browser.press('Enter')
    shown.browser.wait('document.querySelector(".card").textContent.startsWith("which one?")')
    shown.browser.wait('document.querySelector(".card").classList.contains("failed")')
    assert '200 characters' in shown.newest('querySelector(".reason").textContent')
    assert shown.newest('querySelectorAll("button").length') == 0
    shown.browser.evaluate('document.getElementById("choices").value = ""')


def test_what_is_being_typed_is_not_lost_by_looking_at_earlier_questions(shown):
    value = 'document.getElementById("question").value'
    shown.ask('what color is the shape?')
    shown.focus_by_keys('question', SHIFT)
    shown.browser.type('half a que')
    shown.browser.press('ArrowUp')
    assert shown.browser.evaluate(value) == 'what color is the shape?'
    shown.browser.press('ArrowDown')
    assert shown.browser.evaluate(value) == 'half a que'
    taken = shown.browser.evaluate(  # by who writes Chinese, to choose among characters
        'document.getElementById("question").dispatchEvent(new KeyboardEvent("keydown", '
        '{key: "ArrowUp", isComposing: true, cancelable: true})) === false'
    )
    assert not taken and shown.browser.evaluate(value) == 'half a que'
    shown.browser.evaluate(f'{value} = ""')


def test_a_text_runs_in_the_direction_of_its_own_script(shown):
    shown.ask('שלום?')
    lefts = shown.newest(
        'querySelector(".question").firstChild && [0, 4].map((at) => {'
        'const range = document.createRange();'
        'const text = document.querySelector(".question").firstChild;'
        'range.setStart(text, at); range.setEnd(text, at + 1);'
        'return range.getBoundingClientRect().left; })'
    )
    assert lefts[1] < lefts[0]  # the mark ends the text on the left


def test_a_setting_is_changed_or_refused_in_words(shown):
    shown.browser.evaluate('document.querySelector("details").open = true')
    shown.focus_by_keys('parameter-top_k')
    shown.browser.evaluate('document.activeElement.select()')
    shown.browser.type('7')
    shown.browser.press('Enter')
    shown.browser.evaluate('document.activeElement.blur()')
    shown.browser.wait('document.getElementById("parameter-top_k").value === "7"')
    shown.browser.evaluate(
        'const e = document.getElementById("parameter-top_p"); e.value = "7";'
        'e.dispatchEvent(new Event("change"))'
    )
    shown.browser.wait('document.getElementById("refused").textContent.includes("top_p")')
    shown.browser.wait('document.getElementById("parameter-top_p").value === "0.8"')
    shown.browser.evaluate(  # emptied: no number, and not 0
        'const f = document.getElementById("parameter-top_p"); f.value = "";'
        'f.dispatchEvent(new Event("change"))'
    )
    assert shown.browser.evaluate('document.getElementById("parameter-top_p").value') == '0.8'
    by_others = Parameter('top_k', value=9).to_parameter_msg()
    shown.graph.call(SetParameters, 'llm/set_parameters', parameters=[by_others])
    shown.browser.wait('document.getElementById("parameter-top_k").value === "9"')
    shown.browser.evaluate('document.querySelector("details").open = false')


def test_standing_questions_and_turns_of_speech_are_shown(shown):
    graph = shown.graph
    client = graph.create_client(AddAlert, 'llm/add_alert')
    rule = AlertRule(id='a_shape', question='is there a shape?', after_s=0.0)
    graph.spin_until(client.service_is_ready, 'add_alert')
    reply = graph.result_of(client.call_async(AddAlert.Request(rule=rule)), 'add_alert')
    assert reply.success, reply.reason
    shown.browser.wait('document.getElementById("rules").textContent.includes("a_shape")')
    of_button = 'document.querySelector("#rules button")'
    shown.browser.evaluate(f'{of_button}.focus()')
    states = []
    graph.create_subscription(AlertStates, 'llm/alerts/state', states.append, 10)
    graph.spin_until(lambda: len(states) > 2, 'states that are told again')
    shown.browser.press(' ')  # the button still has the focus
    shown.browser.wait(f'{of_button}.textContent === "Go on"')
    assert 'a_shape' in shown.browser.evaluate(f'{of_button}.ariaLabel')
    shown.browser.press(' ')
    shown.browser.wait(f'{of_button}.textContent === "Pause"')
    speech = graph.create_publisher(Speech, 'voice/speech', 10)
    graph.spin_until(lambda: speech.get_subscription_count(), 'who hears of speech')
    speech.publish(Speech(kind=Speech.DISCARDED, reason='<b>too short</b>'))
    shown.browser.wait('document.getElementById("speech").textContent.includes("<b>too short")')


def test_nothing_that_changes_every_second_is_read_aloud(shown):
    assert shown.browser.evaluate(TOLD) == []


def test_a_long_choice_leaves_space_for_its_probability(shown):
    shown.focus_by_keys('choices')
    shown.browser.type('x' * 200 + ', y')
    shown.ask('which one?')
    shown.browser.evaluate('document.getElementById("choices").value = ""')
    assert shown.browser.evaluate(WIDE) == []
    width = 'querySelector(".shares .bar").getBoundingClientRect().width'
    assert shown.newest(width) >= 40


@pytest.mark.parametrize('is_dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 360])
def test_the_page_fits_the_screen_and_can_be_read(shown, width, is_dark):
    shown.browser.look(width, 900, is_dark)
    shown.browser.wait(f'innerWidth === {width}')
    assert shown.browser.evaluate('document.documentElement.scrollWidth') <= width
    assert shown.browser.evaluate(WIDE) == []
    ratio, what = shown.browser.evaluate(CONTRAST)
    assert ratio >= 4.5, what
    assert shown.browser.evaluate(
        '[...document.querySelectorAll("input, select, button, img:not([hidden]), meter")].every('
        '(e) => e.labels?.length || e.textContent || e.hasAttribute("alt") || e.ariaLabel)'
    )


def test_the_arrow_keys_move_along_the_seconds(shown):
    shown.focus_by_keys('strip')
    shown.browser.press('End')
    newest = shown.browser.evaluate('document.getElementById("second-facts").textContent')
    shown.browser.press('ArrowLeft')
    shown.browser.press('ArrowLeft')
    before = shown.browser.evaluate('document.getElementById("second-facts").textContent')
    assert before != newest and 'positions' in before


def test_one_page_at_a_time_is_the_camera_and_one_that_lost_it_says_so(shown, tmp_path):
    other = Browser(tmp_path, shown.folder / 'camera.y4m', shown.folder / 'microphone.wav')
    state = 'document.getElementById("senses-state").textContent'
    start = 'document.getElementById("senses-start")'
    try:
        other.call('Page.addScriptToEvaluateOnNewDocument', source=HOOK)
        other.open(f'{shown.base}?t=secret')
        other.wait(f'!{start}.closest("[hidden]")')
        other.evaluate(f'{start}.click()')
        other.wait(f'{state}.startsWith("Another page")')
        assert other.evaluate(f'!{start}.hidden && stream.getTracks()[0].readyState') == 'ended'
        shown.browser.evaluate('document.getElementById("senses-stop").click()')
        images = []  # at most two are on their way when one has stopped
        shown.graph.create_subscription(CompressedImage, 'image/compressed', images.append, 10)
        shown.graph.spin_until(
            lambda: len(images) > 2 or other.evaluate(f'{start}.hidden || {start}.click()') and 0,
            'images of the other page',
        )
        assert other.evaluate(state).startswith('Your') and other.evaluate('stream.active')
        other.evaluate('stream.getVideoTracks()[0].dispatchEvent(new Event("ended"))')
        assert 'has ended' in other.evaluate(state)
        assert not other.evaluate('stream.active')  # no image stands still as if it were new
        assert other.console == []
    finally:
        other.close()


def test_nothing_went_wrong_and_no_other_server_was_asked(shown):
    """Run last: it looks at what the browser has noted in all tests."""
    assert shown.browser.console == []
    asked = {re.sub(r'^(blob:)?(http|ws)://', '', one).partition('/')[0]
             for one in shown.browser.requests}  # fmt: skip
    assert asked == {re.sub(r'^http://|/$', '', shown.base)}
    assert shown.graph.status.units_dropped == 0
    assert 'Traceback' not in shown.web.log
    end_while_a_question_is_open(shown)
    port = urlsplit(shown.base).port
    told = '[...document.querySelectorAll(".card, #events li")].map((e) => e.textContent)'
    before = shown.browser.evaluate(told)
    again = shown.graph.start('web', '-p', f'port:={port}', '-p', 'token:=secret')
    shown.browser.wait('document.getElementById("state").textContent === "Ready"')
    assert shown.browser.evaluate(told) == before
    again.end()
    again = shown.graph.start('web', '-p', f'port:={port}', '-p', 'token:=another')
    shown.graph.spin_until(lambda: 'the page is at' in again.log, 'the address')
    shown.browser.wait('document.getElementById("notice").textContent.includes("token is wrong")')
    again.end()


def end_while_a_question_is_open(shown) -> None:
    """End node web; the page says that nobody answers any more."""
    shown.live.popen.send_signal(signal.SIGSTOP)
    try:
        shown.focus_by_keys('question', SHIFT)
        shown.browser.type('what color is the shape?')
        shown.browser.press('Enter')
        shown.browser.wait('document.querySelector(".card .waiting") !== null')
        shown.browser.evaluate(  # ten seconds later
            'const now = performance.now.bind(performance); performance.now = () => now() + 1e4'
        )
        shown.browser.wait('document.getElementById("state").textContent === "llm is silent"')
        assert shown.web.end() == 0
    finally:
        shown.live.popen.send_signal(signal.SIGCONT)
    shown.browser.wait('document.getElementById("state").textContent === "Not connected"')
    shown.browser.wait('document.querySelector(".card.failed .reason") !== null')
    assert 'ask again' in shown.newest('querySelector(".reason").textContent')
    assert shown.browser.evaluate('document.querySelectorAll(".card .waiting").length') == 0
