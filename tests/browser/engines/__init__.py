"""Three browser engines behind one small face.

What a test does with a page is `Tab`; where tabs come from is `Engine`. A test that asks for the fixture `open_tab`
runs in every engine, unless it is marked `@pytest.mark.engines("chromium")`.
"""
