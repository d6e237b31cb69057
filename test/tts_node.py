# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The nodes of others that say texts, as far as their interfaces go, for child processes.

    python tts_node.py audio_common|sound_play NAMESPACE

Each goal lasts until it is told to end: `tts/end` ends the goal at hand (`ok`, `abort`). What
comes is told on `tts/events`: `goal TEXT|VOICE`, `cancel`, `stop`. Like the real ones, the node of
audio_common takes a cancel; that of sound_play takes none, but is silent when its topic says so.
"""

import sys

import overlays

PACKAGES = {'audio_common': ('mgonzs13', 'audio_common_msgs'), 'sound_play': ('sound_play',) * 2}
RATE_HZ = 16_000


def environment(kind: str) -> dict:
    """Build the package once; give what a child process needs to have it in front."""
    return overlays.environment(*PACKAGES[kind])


def main(kind: str, namespace: str) -> None:
    """Serve until it is ended."""
    import rclpy
    from rclpy.action import ActionServer, CancelResponse
    from rclpy.callback_groups import ReentrantCallbackGroup
    from rclpy.qos import QoSDurabilityPolicy, QoSProfile
    from rclpy.task import Future
    from std_msgs.msg import String

    rclpy.init()
    node, goals = rclpy.create_node('tts_node', namespace=namespace), []
    deep = QoSProfile(depth=50)
    # Who listens may find this publisher after the first event.
    kept = QoSProfile(depth=50, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    events = node.create_publisher(String, 'tts/events', kept)

    def tell(text):
        events.publish(String(data=text))

    def end(message):
        while goals:
            goals.pop().set_result(message.data)

    async def execute(goal):
        goals.append(Future(executor=node.executor))
        future = goals[-1]
        if kind == 'audio_common':
            request = goal.request
            tell(f'goal {request.text}|{request.language} {request.volume:g} {request.rate:g}')
            feedback = TTS.Feedback()
            feedback.audio.audio.audio_data.float32_data.extend([0.5] * 400)
            info = feedback.audio.audio.info
            info.format, info.channels, info.rate, info.chunk = 1, 1, RATE_HZ, 400
            goal.publish_feedback(feedback)
        else:
            request = goal.request.sound_request
            kinds = (request.sound, request.command)
            tell(f'goal {request.arg}|{request.arg2} {request.volume:g} {kinds}')
        outcome = await future
        {'ok': goal.succeed, 'abort': goal.abort, 'cancel': goal.canceled}[outcome]()
        return action.Result()

    def cancel(goal):
        tell('cancel')
        if kind == 'sound_play':
            return CancelResponse.REJECT
        end(String(data='cancel'))
        return CancelResponse.ACCEPT

    def on_request(message):
        tell(f'stop {(message.sound, message.command)}')
        end(String(data='ok'))

    node.create_subscription(String, 'tts/end', end, deep)
    if kind == 'audio_common':
        from audio_common_msgs.action import TTS

        action, name = TTS, 'say'
    else:
        from sound_play.action import SoundRequest as action
        from sound_play.msg import SoundRequest

        name = 'sound_play'
        node.create_subscription(SoundRequest, 'robotsound', on_request, deep)
    group = ReentrantCallbackGroup()
    ActionServer(node, action, name, execute, cancel_callback=cancel, callback_group=group)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main(*sys.argv[1:])
