"""A spider as Scrapy's tutorial would write one.

`python scrapy_spider.py URL FIRST LAST CONCURRENCY OUT` reads index pages and their articles, prints pages and seconds.
"""
import json
import sys
import time

import scrapy
from scrapy.crawler import CrawlerProcess

base, out = sys.argv[1], sys.argv[5]
first, last, concurrency = map(int, sys.argv[2:5])


class Beauty(scrapy.Spider):
    name = 'beauty'
    start_urls = [f'{base}/bbs/Beauty/index{n}.html' for n in range(first, last + 1)]
    custom_settings = dict(
        CONCURRENT_REQUESTS=concurrency, CONCURRENT_REQUESTS_PER_DOMAIN=concurrency, DOWNLOAD_DELAY=0,
        AUTOTHROTTLE_ENABLED=False, ROBOTSTXT_OBEY=False, COOKIES_ENABLED=False, TELNETCONSOLE_ENABLED=False,
        LOG_LEVEL='ERROR', DEFAULT_REQUEST_HEADERS={'Cookie': 'over18=1'},
        FEEDS={out: dict(format='jsonlines', overwrite=True)})

    def parse(self, response):
        for row in response.css('.r-ent'):
            if href := row.css('.title > a::attr(href)').get():
                yield response.follow(href, self.parse_article, cb_kwargs=dict(author=row.css('.author::text').get()))

    def parse_article(self, response, author):
        tags, values = (response.css(f'.article-meta-{o}::text').getall() for o in ('tag', 'value'))
        meta = dict(zip(tags, values))
        links = response.css('#main-content a::attr(href)').getall()
        yield dict(url=response.url, title=meta.get('標題'), time=meta.get('時間'), author=author,
                   images=[u for u in links if u.lower().endswith(('.jpg', '.jpeg', '.png', '.gif', '.webp'))])


process = CrawlerProcess()
crawler = process.create_crawler(Beauty)
process.crawl(crawler)
start = time.perf_counter()
process.start()
print(json.dumps(dict(pages=crawler.stats.get_value('response_received_count'), seconds=time.perf_counter() - start)))
